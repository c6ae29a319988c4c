"""Every Triton kernel without a GPU: run by the interpreter, and compiled for the GPUs we care about."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")
from triton import knobs  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

HERE = Path(__file__).parent
# A100, Jetson Orin, H100, B200.
TARGETS = [80, 87, 90, 100]
QUICK_TARGET = 90
FLOAT, FLAG, INT, SCALAR = "*fp32", "*i1", "i32", "fp32"
HALF, DOUBLE, ID = "*bf16", "*fp64", "*i64"


# Each is a process, so that workers share them.
INTERPRETED = (
    ("gae", "group_advantage", "normalize", "ppo_loss"),
    ("running", "scan"),
    ("selective_scan", "sum_tree"),
)
QUICK = INTERPRETED[:1]


def interpreted():
    for names in INTERPRETED:
        for everything in (False, True):
            marks = () if names in QUICK and not everything else pytest.mark.slow
            yield pytest.param(names, everything, marks=marks, id=f"{'-'.join(names)}-{everything}")


@pytest.mark.parametrize(("names", "everything"), interpreted())
def test_the_interpreter_passes_the_tests_of_this_folder(names, everything):
    """Every test of every kernel; the largest shapes and the most random examples only in the slow tests.

    So are the tests of how torch sees the operators, which the compiled kernels pass in every run.
    """
    files = [str(HERE / f"test_{name}.py") for name in names]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "triton", *files]
    if not everything:
        command += ["-m", "not slow", "-k", "triton and not opcheck and not one_graph"]
    run = subprocess.run(
        command,
        cwd=HERE.parents[1],
        env={**os.environ, "TRITON_INTERPRET": "1", "INTERPRET_ALL": str(int(everything))},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-4000:]
    assert re.search(r"\d+ passed", run.stdout)
    assert "skipped" not in run.stdout


TICKET = "*i32"
GAE = [FLOAT, FLOAT, FLOAT, FLAG, FLAG]


def gae_kernel(mask=FLAG):
    from kernels.gae import triton_kernel as module

    types = [*GAE, mask, FLOAT, FLOAT, FLOAT, TICKET, FLOAT, INT, INT, SCALAR, SCALAR, SCALAR]
    constants = {"BLOCK": module.BLOCK, "NUM_STAGES": module.NUM_STAGES, "PARTIALS": 64}
    return module.gae_kernel, types, constants, module.NUM_WARPS


def gae_scan_kernel(mask=FLAG):
    from kernels.gae import triton_kernel as module

    types = [*GAE, mask, FLOAT, FLOAT, FLOAT, TICKET, FLOAT, INT, INT, INT, INT, SCALAR, SCALAR, SCALAR]
    constants = {"CHUNK": module.CHUNK, "FEW": module.FEW, "PARTIALS": 64}
    return module.gae_scan_kernel, types, constants, module.SCAN_WARPS


def gae_tile_kernel(mask=FLAG, float_type=FLOAT, steps=32, layout="TN"):
    from kernels.gae import triton_kernel as module

    inputs = [float_type] * 3 + [FLAG, FLAG]
    strides = [INT, None] if layout == "TN" else [None, INT]
    types = [*inputs, mask, FLOAT, FLOAT, FLOAT, ID, FLOAT, INT, INT, *strides, SCALAR, SCALAR, SCALAR]
    constants = {"STEPS": steps, "WORLDS": module.TILE // steps, "PARTIALS": module.MAX_TILES}
    # The launcher makes a constant of a one.
    constants["stride_world" if layout == "TN" else "stride_step"] = 1
    return module.gae_tile_kernel, types, constants, module.TILE_WARPS


def gae_apply_kernel(mask=FLAG):
    from kernels.gae import triton_kernel as module

    return module.apply_kernel, [FLOAT, mask, FLOAT, INT], {"BLOCK": module.APPLY_BLOCK}, module.APPLY_WARPS


def moments_kernel(mask=FLAG):
    from kernels.normalize import triton_kernel as module

    return module.moments_kernel, [FLOAT, mask, FLOAT, INT], {"BLOCK": module.BLOCK}, module.NUM_WARPS


def normalize_kernel(mask=FLAG):
    from kernels.normalize import triton_kernel as module

    types = [FLOAT, mask, FLOAT, FLOAT, INT, INT, SCALAR]
    constants = {"BLOCK": module.BLOCK, "PARTIALS": module.MAX_PARTIALS}
    return module.normalize_kernel, types, constants, module.NUM_WARPS


def running_kernel(float_type=FLOAT, mask=FLAG, out=True, update=True, width=48):
    from kernels.normalize import triton_kernel as module

    tensors = [float_type, mask, DOUBLE, float_type if out else None, DOUBLE if update else None]
    types = [*tensors, INT, INT, SCALAR, SCALAR]
    return module.running_kernel, types, module.tile(width), module.NUM_WARPS


def merge_kernel():
    from kernels.normalize import triton_kernel as module

    constants = {"MERGED": module.MERGED, "COLUMNS": module.MERGED_COLUMNS}
    return module.merge_kernel, [DOUBLE, DOUBLE, INT, INT], constants, module.NUM_WARPS


def sum_tree_update_kernel():
    from kernels.sum_tree import triton_kernel as module

    constants = {"BLOCK": module.UPDATE_BLOCK, "FAN_OUT": module.FAN_OUT}
    return module.update_kernel, [FLOAT, ID, FLOAT, INT, INT, INT], constants, module.UPDATE_WARPS


def sum_tree_sample_kernel(uniform=FLOAT):
    from kernels.sum_tree import triton_kernel as module

    constants = {"BLOCK": module.SAMPLE_BLOCK, "FAN_OUT": module.FAN_OUT}
    arguments = [FLOAT, uniform, ID, FLOAT, INT, INT, INT, INT]
    return module.sample_kernel, arguments, constants, module.SAMPLE_WARPS


def returns_kernel(float_type=FLOAT, discount=None):
    from kernels._scan import triton_kernel as module

    flag = FLAG if discount is None else None
    tensors = [float_type, None, None, float_type, discount, flag, flag, None, float_type]
    types = [*tensors, INT, INT, *[SCALAR] * 4]
    return module.scan_kernel, types, scan_constants(module), module.NUM_WARPS


def vtrace_kernel(float_type=FLOAT):
    from kernels._scan import triton_kernel as module

    tensors = [*[float_type] * 4, None, FLAG, FLAG, float_type, float_type]
    types = [*tensors, INT, INT, *[SCALAR] * 4]
    return module.scan_kernel, types, scan_constants(module), module.NUM_WARPS


def returns_backward_kernel(float_type=FLOAT, discount=None):
    from kernels._scan import triton_kernel as module

    flag = FLAG if discount is None else None
    tensors = [float_type, discount, float_type, discount, flag, flag, float_type, float_type, discount]
    types = [*tensors, INT, INT, SCALAR, SCALAR]
    return module.backward_kernel, types, scan_constants(module), module.NUM_WARPS


def scan_constants(module):
    return {"BLOCK": module.BLOCK, "NUM_STAGES": module.NUM_STAGES}


def group_kernel(float_type=FLOAT, mask=FLAG, ids=ID):
    from kernels.group_advantage import triton_kernel as module

    types = [float_type, mask, ids, ids, float_type, INT, INT, INT, SCALAR]
    return module.group_kernel, types, {"BLOCK": module.BLOCK}, module.NUM_WARPS


# The tensors that a step reads.
ASYNCHRONOUS = {gae_kernel: 5, returns_kernel: 4, vtrace_kernel: 6, returns_backward_kernel: 3}


def ppo_loss_forward(categorical=False, shared=True, width=12):
    from kernels.ppo_loss import triton_kernel as module

    log_std, action = (None, "*i64") if categorical else (FLOAT, FLOAT)
    types = [FLOAT, log_std, action, *[FLOAT] * 7, FLAG, *[FLOAT] * 6, "*i32", INT, INT, *[SCALAR] * 7]
    constants = ppo_loss_constants(module, shared and not categorical, width)
    constants |= {"SMOOTH": True, "PROGRAMS": module.MAX_PROGRAMS}
    return module.forward_kernel, types, constants, module.NUM_WARPS


def ppo_loss_backward(categorical=False, shared=True, width=12, others=FLOAT):
    from kernels.ppo_loss import triton_kernel as module

    log_std, action = (None, "*i64") if categorical else (FLOAT, FLOAT)
    gradients = [FLOAT, others, others]
    types = [FLOAT, log_std, action, FLAG, FLOAT, FLOAT, *gradients, *[FLOAT] * 4, "*i32"]
    types += [INT, INT, SCALAR, SCALAR]
    constants = ppo_loss_constants(module, shared and not categorical, width)
    return module.backward_kernel, types, constants, module.NUM_WARPS


def ppo_loss_constants(module, shared, width):
    columns = triton.next_power_of_2(width)
    return {"SHARED": shared, "ROWS": module.BLOCK // columns, "COLUMNS": columns}


def selective_forward(float_type=FLOAT, optional=True, steps=64, states=16):
    from kernels.selective_scan import triton_kernel as module

    given = [float_type, float_type, FLOAT, float_type, float_type]
    last = [FLOAT, float_type, FLOAT, FLAG, FLOAT] if optional else [None] * 5
    saved = FLOAT if optional else None
    types = [*given, *last, float_type, FLOAT, saved, None if steps == 1 else INT, INT, INT]
    return module.forward_kernel, types, *selective_constants(module, optional, steps, states)


def selective_backward(float_type=FLOAT, optional=True, steps=64, states=16):
    from kernels.selective_scan import triton_kernel as module

    given = [float_type, FLOAT if optional else None, float_type, float_type, FLOAT, float_type, float_type]
    last = [FLOAT, float_type, FLOAT, FLAG] if optional else [None] * 4
    results = [float_type, float_type, FLOAT, FLOAT, FLOAT]
    rest = [FLOAT, float_type, FLOAT, FLOAT] if optional else [None] * 4
    types = [*given, *last, FLOAT, *results, *rest, None if steps == 1 else INT, INT, INT]
    return module.backward_kernel, types, *selective_constants(module, optional, steps, states)


def selective_constants(module, softplus, steps, states):
    tile = module.tile((64, steps, 512), (512, states))
    num_warps = tile.pop("num_warps")
    # The launcher makes a constant of a one.
    return {"SOFTPLUS": softplus, **tile} | ({"num_steps": 1} if steps == 1 else {}), num_warps


SELECTIVE_VARIANTS = [
    {},
    {"float_type": HALF},
    {"optional": False},
    {"steps": 1},
    *({"states": states} for states in (1, 4, 64, 256)),
]
GAE_TILE_VARIANTS = [
    {},
    {"mask": None},
    {"float_type": HALF},
    {"layout": "NT"},
    {"steps": 2},
    {"steps": 128, "layout": "NT"},
]
PPO_LOSS_VARIANTS = [{}, {"shared": False}, {"categorical": True}, {"width": 1}, {"width": 64}]


# What is compiled, with each kernel's default options first.
VARIANTS = [
    (gae_kernel, {}),
    (gae_kernel, {"mask": None}),
    (gae_scan_kernel, {}),
    (gae_scan_kernel, {"mask": None}),
    *((gae_tile_kernel, options) for options in GAE_TILE_VARIANTS),
    (gae_apply_kernel, {}),
    (gae_apply_kernel, {"mask": None}),
    (moments_kernel, {}),
    (moments_kernel, {"mask": None}),
    (normalize_kernel, {}),
    (normalize_kernel, {"mask": None}),
    (running_kernel, {}),
    (running_kernel, {"float_type": HALF, "mask": None}),
    (running_kernel, {"out": False, "width": 1}),
    (running_kernel, {"update": False, "width": 7}),
    (merge_kernel, {}),
    (sum_tree_update_kernel, {}),
    (sum_tree_sample_kernel, {}),
    (sum_tree_sample_kernel, {"uniform": DOUBLE}),
    (returns_kernel, {}),
    (returns_kernel, {"float_type": HALF}),
    (returns_kernel, {"discount": FLOAT}),
    (vtrace_kernel, {}),
    (vtrace_kernel, {"float_type": HALF}),
    (returns_backward_kernel, {}),
    (returns_backward_kernel, {"discount": FLOAT}),
    (group_kernel, {}),
    (group_kernel, {"mask": None, "ids": None}),
    *((ppo_loss_forward, options) for options in PPO_LOSS_VARIANTS),
    *((ppo_loss_backward, options) for options in PPO_LOSS_VARIANTS),
    (ppo_loss_backward, {"others": None}),
    *((selective_forward, options) for options in SELECTIVE_VARIANTS),
    *((selective_backward, options) for options in SELECTIVE_VARIANTS),
]


def sweep():
    """Every variant for every GPU. In every run all variants for one GPU, and each kernel for all of them."""
    for kernel, options in VARIANTS:
        for capability in TARGETS:
            for aligned in (True, False):
                quick = capability == QUICK_TARGET or (aligned and not options)
                name = f"{kernel.__name__}-{'-'.join(f'{k}={v}' for k, v in options.items()) or 'default'}"
                yield pytest.param(
                    kernel,
                    options,
                    capability,
                    aligned,
                    marks=[] if quick else pytest.mark.slow,
                    id=f"{name}-{capability}-{'aligned' if aligned else 'ragged'}",
                )


def test_every_kernel_has_a_variant_with_default_options():
    """`sweep` compiles these for every GPU in every run."""
    kernels = {kernel for kernel, _ in VARIANTS}
    assert kernels == {kernel for kernel, options in VARIANTS if not options}


@pytest.mark.parametrize(("kernel", "options", "capability", "aligned"), sweep())
def test_compiles_without_spilling(kernel, options, capability, aligned, tmp_path):
    more = cooperative_options() if kernel is gae_tile_kernel else {}
    compiled = compile_for(capability, *kernel(**options), aligned=aligned, **more)
    usage = resource_usage(compiled, tmp_path)
    assert usage["STACK"] == 0
    if more:
        assert compiled.metadata.launch_cooperative_grid
        # What the number of programs that are resident together is reckoned from; four share 64 KiB or more.
        assert usage["REG"] <= more["maxnreg"]
        assert compiled.metadata.shared <= 16 * 1024
    if kernel in ASYNCHRONOUS and not options and aligned:
        copies = compiled.asm["ptx"].count("cp.async.ca.shared.global")
        assert copies >= ASYNCHRONOUS[kernel], "the loads of the steps ahead are not asynchronous"


def cooperative_options():
    from kernels.gae import triton_kernel as module

    return {"maxnreg": module.TILE_REGISTERS, "launch_cooperative_grid": True}


def test_a_spill_would_be_seen(tmp_path):
    function, types, _, _ = moments_kernel()
    starved = compile_for(90, function, types, {"BLOCK": 8192}, num_warps=1, aligned=True, maxnreg=32)
    assert resource_usage(starved, tmp_path)["STACK"] > 0


def compile_for(capability, function, types, constants, num_warps, aligned, **options):
    names = function.arg_names
    constants = {name: None for name, kind in zip(names, types, strict=False) if kind is None} | constants
    arguments = dict(zip(names, types, strict=False)) | dict.fromkeys(constants, "constexpr")
    # What the launcher finds out about pointers and, where they are multiples of 16, about sizes.
    pointers = (FLOAT, HALF, DOUBLE, FLAG, ID)
    divisible = [i for i, kind in enumerate(types) if kind in pointers or (aligned and kind == INT)]
    attributes = {(i,): [["tt.divisibility", 16]] for i in divisible}
    return triton.compile(
        ASTSource(function, arguments, constants, attributes),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": num_warps, "enable_fp_fusion": True, **options},
    )


def resource_usage(compiled, tmp_path):
    """What the cubin says of itself, in registers and bytes; spilled registers live in the stack frame."""
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(cubin)]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"Function {compiled.metadata.name}:" in report
    return {key: int(number) for key, number in re.findall(r"(REG|STACK):(\d+)", report)}
