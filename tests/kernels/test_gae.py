"""GAE in every implementation, against itself in float64 and against TorchRL's."""

import itertools
import os

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torchrl.objectives.value.functional import generalized_advantage_estimate

from kernels.gae import gae, make_inputs

# Single steps and worlds, primes, both sides of a block's edge, and few worlds for many steps.
SHAPES = [(1, 1), (1, 7), (17, 1), (13, 31), (5, 127), (3, 129), (9, 128), (2, 2053), (211, 3)]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
INTERPRET_ALL = os.environ.get("INTERPRET_ALL") == "1"
EXAMPLES = 400 if not INTERPRETED else 40 if INTERPRET_ALL else 12
pytestmark = pytest.mark.usefixtures("poisoned_memory")


def in_float64(inputs):
    floats = ("reward", "value", "next_value")
    return {name: x.double() if name in floats else x for name, x in inputs.items()}


def relative_error(actual, expected):
    return ((actual.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-30)).item()


def assert_exact(inputs, implementation, **options):
    """Within 1e-5 of the largest number that is summed; of normalized advantages, which lose the digits by
    which their mean is above their spread, within 1e-5 times that.
    """
    largest = max(inputs[name].abs().max().item() for name in ("reward", "value", "next_value"))
    raw, value_target, moments = gae(**inputs, **options, normalize=False, implementation=implementation)
    normalized = gae(**inputs, **options, implementation=implementation)[0]
    exact = gae(**in_float64(inputs), **options, normalize=False, implementation="reference")
    expected = gae(**in_float64(inputs), **options, implementation="reference")[0]
    for actual, theirs in zip((raw, value_target), exact, strict=False):
        assert actual.dtype == torch.float32
        assert actual.shape == theirs.shape
        assert (actual.double() - theirs).abs().max() <= 1e-5 * max(largest, theirs.abs().max().item())
    mean, scale, count = exact[2].tolist()
    assert moments[2] == count
    condition = 1.0 + max(largest, exact[0].abs().max().item()) * scale
    assert abs(moments[0].item() - mean) * scale <= 1e-5 * condition
    assert abs(moments[1].item() / scale - 1.0) <= 1e-5 * condition
    assert (normalized.double() - expected).abs().max().item() <= 1e-5 * condition


@st.composite
def rollouts(draw):
    num_steps, num_worlds = draw(st.sampled_from([1, 2, 3, 17, 130, 300])), draw(st.integers(1, 140))
    if INTERPRETED:
        num_worlds = min(num_worlds, 20)
    dtype = draw(st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float16]))
    inputs = make_inputs(num_steps, num_worlds, dtype=dtype, seed=draw(st.integers(0, 2**31)))
    generator = torch.Generator().manual_seed(1)

    def flags(share):
        return torch.rand(num_steps, num_worlds, generator=generator) < share

    share = st.sampled_from([0.0, 0.05, 0.5, 1.0])
    inputs["terminated"] = flags(draw(share))
    inputs["done"] = inputs["terminated"] | flags(draw(share))
    discount = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0.0, 1.0))
    inputs["gamma"], inputs["lam"] = draw(discount), draw(discount)
    inputs["reward"] = inputs["reward"] * draw(st.sampled_from([1.0, 1e-3, 100.0]))
    mask = flags(draw(share)) if draw(st.booleans()) else None
    layout = draw(st.sampled_from(["TN", "NT"]))
    tensors = {name: x for name, x in (inputs | {"mask": mask}).items() if isinstance(x, torch.Tensor)}
    if layout == "NT":
        tensors = {name: x.t().contiguous() for name, x in tensors.items()}
    if draw(st.booleans()):  # every second column of a wider tensor
        tensors = {name: x.repeat_interleave(2, 1)[:, ::2] for name, x in tensors.items()}
    return inputs | {"mask": mask, "layout": layout} | tensors


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(inputs=rollouts())
def test_equals_float64_for_whatever_rollout(inputs, implementation, device):
    moved = {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in inputs.items()}
    assert_exact(moved, implementation)


# The interpreter needs 20 s for the largest shape: there it is a slow test.
LARGE = pytest.param((300, 70), marks=[pytest.mark.slow] if INTERPRETED else [])


@pytest.mark.parametrize("shape", [*SHAPES, LARGE])
def test_equals_float64(shape, implementation, device):
    assert_exact(make_inputs(*shape, device=device), implementation)


@pytest.mark.parametrize(("gamma", "lam"), itertools.product([0.0, 1.0, 0.99], [0.0, 1.0]))
def test_discounts_at_their_limits(gamma, lam, implementation, device):
    assert_exact({**make_inputs(13, 31, device=device), "gamma": gamma, "lam": lam}, implementation)


@pytest.mark.parametrize("terminated", [True, False])
@pytest.mark.parametrize("done", [True, False])
def test_flags_at_their_limits(terminated, done, implementation, device):
    inputs = make_inputs(13, 31, device=device)
    flags = {
        "terminated": torch.full_like(inputs["terminated"], terminated),
        "done": torch.full_like(inputs["done"], done),
    }
    assert_exact({**inputs, **flags}, implementation)


@pytest.mark.parametrize("shape", [(13, 31), (64, 5)])
def test_equals_torchrl(shape, implementation, device):
    inputs = make_inputs(*shape, device=device)
    columns = {name: x.unsqueeze(-1) for name, x in in_float64(inputs).items() if isinstance(x, torch.Tensor)}
    expected = generalized_advantage_estimate(
        inputs["gamma"],
        inputs["lam"],
        columns["value"],
        columns["next_value"],
        columns["reward"],
        columns["done"],
        columns["terminated"],
        time_dim=0,
    )
    ours = gae(**inputs, normalize=False, implementation=implementation)
    for actual, theirs in zip(ours, expected, strict=False):
        assert relative_error(actual, theirs.squeeze(-1)) <= 1e-5
    advantage = expected[0].squeeze(-1)
    normalized = gae(**inputs, implementation=implementation)[0]
    assert relative_error(normalized, (advantage - advantage.mean()) / advantage.std()) <= 1e-5


def test_worlds_that_the_mask_excludes_do_not_count(implementation, device):
    inputs = make_inputs(13, 31, device=device)
    kept = torch.ones_like(inputs["done"])
    kept[:, 7] = False
    others = {name: x[:, kept[0]] if isinstance(x, torch.Tensor) else x for name, x in inputs.items()}
    expected = gae(**others, implementation=implementation)
    inputs["reward"][4, 7] = torch.nan
    advantage, value_target, moments = gae(**inputs, mask=kept, implementation=implementation)
    torch.testing.assert_close(advantage[:, kept[0]], expected[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(moments, expected[2], rtol=1e-5, atol=1e-6)
    assert (advantage[:, 7] == 0).all()
    assert value_target[:5, 7].isnan().any()


@pytest.mark.parametrize("entry", [-3.7, 1e6, 1.1e-3])
def test_equal_advantages_are_normalized_to_zero(entry, implementation, device):
    inputs = make_inputs(13, 31, device=device) | {"gamma": 0.0}
    inputs["reward"], inputs["value"] = torch.full_like(inputs["reward"], entry), 0 * inputs["value"]
    assert gae(**inputs, implementation=implementation)[0].abs().max() < 1e-3


def test_an_outlier_does_not_spoil_the_moments(implementation, device):
    inputs = make_inputs(64, 200, device=device)
    inputs["reward"][-1, 0] = 1e6
    assert_exact(inputs, implementation)


@pytest.mark.parametrize("layout", ["TN", "NT"])
@pytest.mark.parametrize("turned", [False, True])
def test_graphs_take_it_as_one_operator(layout, turned):
    inputs = make_inputs(5, 8)
    if turned:  # the same shapes, but not contiguous
        inputs = {
            name: x.t().contiguous().t() if isinstance(x, torch.Tensor) else x for name, x in inputs.items()
        }
    # What follows reads the strides that were promised.
    compiled = torch.compile(
        lambda rows: [x.flatten() + 0 for x in gae(**rows, layout=layout)], fullgraph=True
    )
    for ours, theirs in zip(compiled(inputs), gae(**inputs, layout=layout), strict=True):
        assert torch.equal(ours, theirs.flatten())
    tensors = [x for x in inputs.values() if isinstance(x, torch.Tensor)]
    arguments = (*tensors, 0.99, 0.95, True, None, layout, 1e-8, "cpu")
    torch.library.opcheck(torch.ops.pi_incubator.gae.default, arguments)


def test_nan_behind_a_flag_does_not_leak(implementation, device):
    inputs = make_inputs(13, 31, device=device)
    hidden = inputs["next_value"].masked_fill(inputs["terminated"], torch.nan)
    clean = gae(**inputs, implementation=implementation)
    poisoned = gae(**{**inputs, "next_value": hidden}, implementation=implementation)
    assert all(torch.equal(a, b) for a, b in zip(poisoned, clean, strict=True))


def test_nan_stays_in_its_episode(implementation, device):
    inputs = make_inputs(13, 31, device=device)
    inputs["done"][5] = True
    inputs["reward"][7] = torch.nan
    advantage, _, _ = gae(**inputs, normalize=False, implementation=implementation)
    assert advantage[:6].isfinite().all()
    assert advantage[7].isnan().all()


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0)])
def test_empty(shape, implementation, device):
    *results, moments = gae(**make_inputs(*shape, device=device), implementation=implementation)
    assert [list(x.shape) for x in results] == [list(shape)] * 2
    assert moments.tolist()[::2] == [0.0, 0.0]


def test_other_strides(implementation, device):
    inputs = make_inputs(13, 31, device=device)
    strided = {
        name: x.t().contiguous().t() if isinstance(x, torch.Tensor) else x for name, x in inputs.items()
    }
    expected = gae(**inputs, implementation=implementation)
    for actual, contiguous in zip(gae(**strided, implementation=implementation), expected, strict=True):
        assert torch.equal(actual, contiguous)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("value", torch.zeros(3, 5)),
        ("next_value", torch.zeros(4, 5, dtype=torch.float64)),
        ("done", torch.zeros(4, 5)),
        ("terminated", torch.zeros(4, 5, dtype=torch.bool, device="meta")),
        ("reward", torch.zeros(4, 5, 1)),
        ("reward", torch.zeros(4, 5, dtype=torch.int64)),
        ("mask", torch.zeros(4, 5)),
        ("gamma", 1.01),
        ("lam", float("nan")),
        ("layout", "tn"),
    ],
)
def test_an_input_that_does_not_fit_is_named(name, wrong):
    with pytest.raises(ValueError, match=name):
        gae(**{**make_inputs(4, 5), name: wrong})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("shape", [(24, 4096), (128, 8192), (16, 32768), (2048, 8)])
def test_on_hardware_at_full_size_without_a_synchronization(shape):
    inputs = make_inputs(*shape, device="cuda")
    gae(**inputs)  # builds the kernel
    torch.cuda.set_sync_debug_mode("error")
    try:
        gae(**inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_exact(inputs, "triton")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_hardware_in_graphs_that_run_side_by_side():
    """Each captured launch has a barrier of its own; a shared one would let programs through too early."""
    cases = [make_inputs(24, num_worlds, device="cuda") for num_worlds in (4096, 3000)]
    expected = [gae(**case) for case in cases]
    graphs, results = [torch.cuda.CUDAGraph() for _ in cases], []
    for graph, case in zip(graphs, cases, strict=True):
        with torch.cuda.graph(graph):
            results.append(gae(**case))
    streams = [torch.cuda.Stream() for _ in cases]
    for _ in range(200):
        for graph, stream in zip(graphs, streams, strict=True):
            with torch.cuda.stream(stream):
                graph.replay()
    torch.cuda.synchronize()
    for found, exact in zip(results, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found, exact, strict=True))


def _normalize_a_share(rank, num_processes, file, folder):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{file}", rank=rank, world_size=num_processes
    )
    inputs = make_inputs(16, 30)
    share = {name: x.tensor_split(num_processes, 1)[rank] for name, x in inputs.items() if torch.is_tensor(x)}
    mask = (torch.arange(16 * 30).view(16, 30) % 5 > 0).tensor_split(num_processes, 1)[rank]
    group = torch.distributed.group.WORLD
    advantage, _, moments = gae(**(inputs | share), mask=mask, group=group)
    torch.save((advantage, moments), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_processes_normalize_as_one(tmp_path):
    torch.multiprocessing.spawn(_normalize_a_share, (3, tmp_path / "store", tmp_path), nprocs=3)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(3)]
    mask = torch.arange(16 * 30).view(16, 30) % 5 > 0
    expected, _, moments = gae(**make_inputs(16, 30), mask=mask)
    torch.testing.assert_close(torch.cat([advantage for advantage, _ in found], 1), expected)
    for _, theirs in found:
        torch.testing.assert_close(theirs, moments)
        assert torch.equal(theirs, found[0][1])


@pytest.mark.parametrize("implementation", ["cpu"])
@pytest.mark.parametrize(("num_steps", "num_worlds"), [(128, 8192), (512, 2048), (700, 40)])
def test_moments_where_the_last_step_is_of_another_size(implementation, num_steps, num_worlds):
    """What is summed first says nothing of what comes after it."""
    inputs = make_inputs(num_steps, num_worlds)
    inputs["reward"][-1, 0] = 1e6
    mask = torch.ones(num_steps, num_worlds, dtype=torch.bool)
    mask[-1, 1:] = False
    options = {"gamma": 0.0, "mask": mask, "normalize": False}
    inputs = {name: value for name, value in inputs.items() if name not in options}
    mean, scale, count = gae(**inputs, **options, implementation=implementation)[2].tolist()
    exact = gae(**in_float64(inputs), **options, implementation="reference")[2].tolist()
    assert count == exact[2]
    assert mean == pytest.approx(exact[0], rel=1e-5, abs=1e-6 / scale)
    assert scale == pytest.approx(exact[1], rel=1e-5)
    del inputs["reward"]
    inputs["value"].zero_()
    rest = torch.randn(num_steps, num_worlds) * 1e-3 + 50.0  # far from zero, and close together
    rest[-1, 0] = 1e6
    mask[-1, 0] = False
    moments = gae(rest, **inputs, **options, implementation=implementation)[2]
    exact = gae(rest.double(), **in_float64(inputs), **options, implementation="reference")[2]
    torch.testing.assert_close(moments.double(), exact, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("eps", [-1.0, float("nan"), float("inf")])
def test_eps_is_a_number_of_at_least_zero(eps):
    with pytest.raises(ValueError, match="gae: eps must be a finite number of at least 0, got"):
        gae(**make_inputs(3, 4), eps=eps)
