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
FLOAT, FLAG, INT, SCALAR = "*fp32", "*i1", "i32", "fp32"

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="kernels are interpreted here"
)


def test_the_interpreter_passes_the_tests_of_this_folder():
    files = [str(HERE / name) for name in ("test_gae.py", "test_normalize.py", "test_ppo_loss.py")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "triton", *files]
    run = subprocess.run(
        command,
        cwd=HERE.parents[1],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-4000:]
    assert re.search(r"\d+ passed", run.stdout)
    assert "skipped" not in run.stdout


def gae_kernel():
    from kernels.gae import triton_kernel as module

    types = [FLOAT, FLOAT, FLOAT, FLAG, FLAG, FLOAT, FLOAT, INT, INT, SCALAR, SCALAR]
    constants = {"BLOCK": module.BLOCK, "NUM_STAGES": module.NUM_STAGES}
    return module.gae_kernel, types, constants, module.NUM_WARPS


def moments_kernel(mask=FLAG):
    from kernels.normalize import triton_kernel as module

    return module.moments_kernel, [FLOAT, mask, FLOAT, INT], {"BLOCK": module.BLOCK}, module.NUM_WARPS


def normalize_kernel(mask=FLAG):
    from kernels.normalize import triton_kernel as module

    types = [FLOAT, mask, FLOAT, FLOAT, INT, INT, SCALAR]
    constants = {"BLOCK": module.BLOCK, "PARTIALS": module.MAX_PARTIALS}
    return module.normalize_kernel, types, constants, module.NUM_WARPS


def ppo_loss_forward(categorical=False, shared=True, width=12):
    from kernels.ppo_loss import triton_kernel as module

    log_std, action = (None, "*i64") if categorical else (FLOAT, FLOAT)
    types = [FLOAT, log_std, action, *[FLOAT] * 7, FLAG, *[FLOAT] * 6, "*i32", INT, INT, *[SCALAR] * 7]
    constants = ppo_loss_constants(module, shared and not categorical, width)
    constants |= {"SMOOTH": True, "PROGRAMS": module.MAX_PROGRAMS}
    return module.forward_kernel, types, constants, module.NUM_WARPS


def ppo_loss_backward(categorical=False, shared=True, width=12):
    from kernels.ppo_loss import triton_kernel as module

    log_std, action = (None, "*i64") if categorical else (FLOAT, FLOAT)
    types = [FLOAT, log_std, action, FLAG, *[FLOAT] * 9, "*i32", INT, INT, SCALAR, SCALAR]
    constants = ppo_loss_constants(module, shared and not categorical, width)
    return module.backward_kernel, types, constants, module.NUM_WARPS


def ppo_loss_constants(module, shared, width):
    columns = triton.next_power_of_2(width)
    return {"SHARED": shared, "ROWS": module.BLOCK // columns, "COLUMNS": columns}


PPO_LOSS_VARIANTS = [{}, {"shared": False}, {"categorical": True}, {"width": 1}, {"width": 64}]


@pytest.mark.parametrize("aligned", [True, False], ids=["aligned", "ragged"])
@pytest.mark.parametrize("capability", TARGETS)
@pytest.mark.parametrize(
    ("kernel", "options"),
    [
        (gae_kernel, {}),
        (moments_kernel, {}),
        (moments_kernel, {"mask": None}),
        (normalize_kernel, {}),
        (normalize_kernel, {"mask": None}),
        *((ppo_loss_forward, options) for options in PPO_LOSS_VARIANTS),
        *((ppo_loss_backward, options) for options in PPO_LOSS_VARIANTS),
    ],
)
def test_compiles_without_spilling(kernel, options, capability, aligned, tmp_path):
    compiled = compile_for(capability, *kernel(**options), aligned=aligned)
    assert resource_usage(compiled, tmp_path)["STACK"] == 0
    if kernel is gae_kernel and aligned:
        copies = compiled.asm["ptx"].count("cp.async.ca.shared.global")
        assert copies >= 5, "the loads of the steps ahead are not asynchronous"


def test_a_spill_would_be_seen(tmp_path):
    function, types, _, _ = moments_kernel()
    starved = compile_for(90, function, types, {"BLOCK": 8192}, num_warps=1, aligned=True, maxnreg=32)
    assert resource_usage(starved, tmp_path)["STACK"] > 0


def compile_for(capability, function, types, constants, num_warps, aligned, **options):
    names = function.arg_names
    constants = {name: None for name, kind in zip(names, types, strict=False) if kind is None} | constants
    arguments = dict(zip(names, types, strict=False)) | dict.fromkeys(constants, "constexpr")
    # What the launcher finds out about pointers and, where they are multiples of 16, about sizes.
    divisible = [i for i, kind in enumerate(types) if kind in (FLOAT, FLAG) or (aligned and kind == INT)]
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
