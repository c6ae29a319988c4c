"""GAE in every implementation, against itself in float64 and against TorchRL's."""

import itertools

import pytest
import torch
from torchrl.objectives.value.functional import generalized_advantage_estimate

from kernels.gae import gae, make_inputs

# Single steps and worlds, primes, and both sides of a block's edge.
SHAPES = [(1, 1), (1, 7), (17, 1), (13, 31), (5, 127), (3, 129), (9, 128), (2, 2053), (211, 3)]
pytestmark = pytest.mark.usefixtures("poisoned_memory")


def in_float64(inputs):
    floats = ("reward", "value", "next_value")
    return {name: x.double() if name in floats else x for name, x in inputs.items()}


def relative_error(actual, expected):
    return ((actual.double() - expected).abs().max() / expected.abs().max()).item()


def assert_exact(inputs, implementation):
    results = gae(**inputs, implementation=implementation)
    expected = gae(**in_float64(inputs), implementation="reference")
    for actual, exact in zip(results, expected, strict=True):
        assert actual.dtype == torch.float32
        assert actual.shape == exact.shape
        assert relative_error(actual, exact) <= 1e-5


@pytest.mark.parametrize("shape", SHAPES)
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
    for actual, theirs in zip(gae(**inputs, implementation=implementation), expected, strict=True):
        assert relative_error(actual, theirs.squeeze(-1)) <= 1e-5


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
    advantage, _ = gae(**inputs, implementation=implementation)
    assert advantage[:6].isfinite().all()
    assert advantage[7].isnan().all()


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0)])
def test_empty(shape, implementation, device):
    assert [
        list(x.shape) for x in gae(**make_inputs(*shape, device=device), implementation=implementation)
    ] == [list(shape)] * 2


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
