"""Normalized advantages in every implementation, against float64 and against torch.std."""

import pytest
import torch

from kernels.normalize import make_inputs, normalize_advantage

# A few entries, primes, both sides of a block's edge, and more blocks than there are partial moments.
SHAPES = [(1, 2), (3, 5), (13, 31), (1, 1023), (1, 1024), (5, 205), (2, 2053)]
pytestmark = pytest.mark.usefixtures("poisoned_memory")


def largest_difference(actual, expected):
    return (actual.double() - expected).abs().max().item()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("masked", [False, True])
def test_equals_float64(shape, masked, implementation, device):
    inputs = make_inputs(*shape, device=device)
    advantage, mask = inputs["advantage"], inputs["mask"] if masked else None
    actual = normalize_advantage(advantage, mask=mask, implementation=implementation)
    expected = normalize_advantage(advantage.double(), mask=mask, implementation="reference")
    assert actual.dtype == torch.float32
    assert largest_difference(actual, expected) <= 1e-5 * expected.abs().max().item()


def test_more_blocks_than_partial_moments(implementation, device):
    advantage = make_inputs(1, 600 * 1024 + 7, device=device)["advantage"]
    actual = normalize_advantage(advantage, implementation=implementation)
    expected = normalize_advantage(advantage.double(), implementation="reference")
    assert largest_difference(actual, expected) <= 1e-5 * expected.abs().max().item()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened(dtype, implementation, device):
    advantage = make_inputs(13, 31, device=device, dtype=dtype)["advantage"]
    actual = normalize_advantage(advantage, implementation=implementation)
    expected = normalize_advantage(advantage.float(), implementation=implementation)
    assert actual.dtype == dtype
    assert torch.equal(actual, expected.to(dtype))


def test_divides_by_the_unbiased_standard_deviation(implementation, device):
    advantage = make_inputs(2, 3, device=device)["advantage"]
    expected = (advantage - advantage.mean()) / (advantage.std(correction=1) + 0.5)
    actual = normalize_advantage(advantage, eps=0.5, implementation=implementation)
    torch.testing.assert_close(actual, expected)


def test_a_mask_selects(implementation, device):
    inputs = make_inputs(13, 31, device=device)
    advantage, mask = inputs["advantage"], inputs["mask"]
    hidden = advantage.masked_fill(~mask, torch.nan)
    actual = normalize_advantage(hidden, mask=mask, implementation=implementation)
    expected = normalize_advantage(advantage[mask].double(), implementation="reference")
    assert largest_difference(actual[mask], expected) <= 1e-5
    assert (actual[~mask] == 0).all()


@pytest.mark.parametrize("num_kept", [0, 1])
def test_fewer_than_two_entries_are_zero(num_kept, implementation, device):
    advantage = make_inputs(3, 5, device=device)["advantage"]
    mask = torch.zeros_like(advantage, dtype=torch.bool)
    mask.view(-1)[:num_kept] = True
    assert (normalize_advantage(advantage, mask=mask, implementation=implementation) == 0).all()
    assert (normalize_advantage(advantage[:1, :1], implementation=implementation) == 0).all()


def test_an_offset_far_above_the_spread(implementation, device):
    offset = 1000.0
    advantage = make_inputs(13, 311, device=device)["advantage"] + offset
    actual = normalize_advantage(advantage, implementation=implementation)
    expected = normalize_advantage(advantage.double(), implementation="reference")
    rounding = offset * torch.finfo(torch.float32).eps / advantage.double().std().item()
    assert largest_difference(actual, expected) <= 2 * rounding


@pytest.mark.parametrize("shape", [(3, 200), (7, 613)])
def test_equal_entries_are_not_noise(shape, implementation, device):
    advantage = torch.full(shape, 3.7, device=device)
    assert normalize_advantage(advantage, implementation=implementation).abs().max() <= 1e-6


def test_any_shape(implementation, device):
    advantage = make_inputs(12, 30, device=device)["advantage"]
    expected = normalize_advantage(advantage, implementation=implementation)
    column = normalize_advantage(advantage.unsqueeze(-1), implementation=implementation)
    transposed = normalize_advantage(advantage.t(), implementation=implementation)
    assert torch.equal(column.squeeze(-1), expected)
    torch.testing.assert_close(transposed.t(), expected)
    assert normalize_advantage(advantage[:0], implementation=implementation).shape == (0, 30)


@pytest.mark.parametrize("mask", [torch.ones(3, 5), torch.ones(5, 3, dtype=torch.bool)])
def test_a_mask_that_does_not_fit_is_refused(mask):
    with pytest.raises(ValueError, match="mask must be"):
        normalize_advantage(torch.zeros(3, 5), mask=mask)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_hardware_without_a_synchronization_and_the_same_every_time():
    inputs = make_inputs(128, 8192, device="cuda")
    first = normalize_advantage(**inputs)  # builds the kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        second = normalize_advantage(**inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(first, second)
    expected = normalize_advantage(
        inputs["advantage"].double(), mask=inputs["mask"], implementation="reference"
    )
    assert largest_difference(first, expected) <= 1e-5 * expected.abs().max().item()


@pytest.mark.parametrize("advantage", [torch.tensor([1, 2, 3]), torch.tensor([True, False])])
def test_whole_numbers_are_refused(advantage):
    with pytest.raises(ValueError, match="advantage must be float32, bfloat16, float16 or float64"):
        normalize_advantage(advantage)
