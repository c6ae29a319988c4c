"""Normalization by running moments in every implementation, against NumPy in float64 on the whole history."""

import math
import os

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels.normalize import (
    denormalize_value,
    gather_moments,
    make_moments,
    mean_and_std,
    merge_all,
    merge_moments,
    normalize_value,
    running_normalize,
)
from kernels.normalize.running import make_running_inputs

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
EXAMPLES = 30 if INTERPRETED else 400
# One number, narrow rows that lie side by side in one loop, both sides of a tile's columns, and wide rows.
WIDTHS = [1, 2, 3, 5, 15, 16, 17, 48, 130]
EPS = torch.finfo(torch.float32).eps
pytestmark = pytest.mark.usefixtures("poisoned_memory")


def random_rows(num_rows, width, seed=0):
    return torch.randn(num_rows, width, generator=torch.Generator().manual_seed(seed))


def moments_of(batches, masks):
    """`[3, D]` of all rows at once."""
    kept = [x if mask is None else x[mask] for x, mask in zip(batches, masks, strict=True)]
    history = np.concatenate([x.double().cpu().numpy() for x in kept])
    if not len(history):
        return np.zeros((3, history.shape[1]))
    deviation = history - history.mean(0)
    return np.stack([np.full(history.shape[1], len(history)), history.mean(0), (deviation**2).sum(0)])


def normalized_by(moments, observation, clip=10.0, min_std=1e-4):
    count, mean, squares = moments
    std = np.where(count > 0, np.maximum(np.sqrt(squares / np.maximum(count, 1.0)), min_std), 1.0)
    return np.clip((observation.double().cpu().numpy() - mean) / std, -clip, clip)


def assert_moments(actual, expected):
    """As exact as a few operations of float32 on the deviations, whatever they deviate from."""
    count, mean, squares = actual.cpu().numpy()
    assert (count == expected[0]).all()
    spread = np.sqrt(expected[2] / np.maximum(expected[0], 1.0))
    assert (np.abs(mean - expected[1]) <= 4 * EPS * spread + 1e-14 * np.abs(expected[1])).all()
    np.testing.assert_allclose(squares, expected[2], rtol=1e-5, atol=1e-30)


@st.composite
def histories(draw):
    """Batches of rows, some of no rows, with columns of any offset and spread; masks; half precision."""
    width = draw(st.one_of(st.sampled_from(WIDTHS), st.integers(1, 40)))
    seed = draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    offset = draw(st.sampled_from([0.0, 1.0, -100.0, 1e4])) * torch.rand(width, generator=generator)
    spread = 10 ** (draw(st.sampled_from([0.0, 2.0])) * (torch.rand(width, generator=generator) - 0.5))
    dtype = draw(st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float16]))
    batches, masks = [], []
    for k in range(draw(st.integers(1, 4))):
        num_rows = draw(st.one_of(st.integers(0, 3), st.integers(0, 60 if INTERPRETED else 600)))
        batches.append((random_rows(num_rows, width, seed + k) * spread + offset).to(dtype))
        share = draw(st.sampled_from([0.0, 0.2, 0.9]))
        mask = torch.rand(num_rows, generator=generator) < share
        masks.append(mask if draw(st.booleans()) else None)
        if masks[-1] is not None:
            batches[-1][~mask] = torch.nan
    return batches, masks, draw(st.sampled_from([0.5, 10.0, math.inf]))


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(history=histories())
def test_equals_numpy_on_the_whole_history(history, implementation, device):
    batches, masks, clip = history
    moments = make_moments(batches[0].shape[1], device)
    for k, (batch, mask) in enumerate(zip(batches, masks, strict=True)):
        before = moments_of(batches[:k], masks[:k]) if k else make_moments(batch.shape[1]).numpy()
        actual = running_normalize(
            batch.to(device),
            moments,
            mask=None if mask is None else mask.to(device),
            clip=clip,
            implementation=implementation,
        )
        assert (actual.dtype, actual.shape) == (batch.dtype, batch.shape)
        expected = normalized_by(before, batch, clip)
        # In half precision the last digit, and what is infinite, are decided by the same rounding.
        expected = torch.from_numpy(expected).to(batch.dtype)
        tolerance = max(torch.finfo(batch.dtype).eps, 1e-5)
        torch.testing.assert_close(actual.cpu(), expected, rtol=tolerance, atol=1e-5, equal_nan=True)
        assert_moments(moments, moments_of(batches[: k + 1], masks[: k + 1]))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("num_rows", [1, 2, 17, 300])
def test_equals_numpy_at_the_edges_of_blocks(num_rows, width, implementation, device):
    moments = make_moments(width, device)
    batches = [random_rows(num_rows, width, seed) for seed in range(3)]
    for batch in batches:
        running_normalize(batch.to(device), moments, implementation=implementation)
    assert_moments(moments, moments_of(batches, [None] * 3))


def test_more_blocks_than_programs(implementation, device):
    rows = random_rows(260 * 64 + 7, 16) + 3.0
    moments = make_moments(rows.shape[1], device)
    gather_moments(rows.to(device), moments, implementation=implementation)
    assert_moments(moments, moments_of([rows], [None]))


def test_an_offset_far_above_the_spread_costs_no_digits(implementation, device):
    batches = [random_rows(200, 5, seed) * 1e-2 + 1e4 for seed in range(20)]
    moments = make_moments(5, device)
    for batch in batches:
        gather_moments(batch.to(device), moments, implementation=implementation)
    expected = moments_of(batches, [None] * 20)
    assert_moments(moments, expected)
    actual = running_normalize(batches[0].to(device), moments, update=False, implementation=implementation)
    np.testing.assert_allclose(
        actual.cpu().numpy(), normalized_by(expected, batches[0]), rtol=1e-5, atol=1e-5
    )


def test_an_outlier_does_not_spoil_the_moments(implementation, device):
    batches = [random_rows(100, 3, seed) for seed in range(3)]
    batches[0][0] = 1e6
    moments = make_moments(3, device)
    for batch in batches:
        gather_moments(batch.to(device), moments, implementation=implementation)
    assert_moments(moments, moments_of(batches, [None] * 3))


def test_what_never_moved_is_zero(implementation, device):
    moments = make_moments(4, device)
    still = torch.full((70, 4), 3.7, device=device)
    for _ in range(3):
        actual = running_normalize(still, moments, implementation=implementation)
    assert (moments[2] == 0).all()
    assert actual.abs().max() <= 1e-6


def test_frozen_moments_do_not_change(implementation, device):
    moments = make_moments(7, device)
    gather_moments(random_rows(50, 7).to(device) * 3 - 1, moments, implementation=implementation)
    before = moments.clone()
    observation = random_rows(30, 7, 1).to(device)
    frozen = running_normalize(observation, moments, update=False, implementation=implementation)
    assert torch.equal(moments, before)
    assert torch.equal(running_normalize(observation, moments, implementation=implementation), frozen)
    assert not torch.equal(moments, before)


def test_no_moments_pass_what_is_given_but_clip_it(implementation, device):
    observation = random_rows(30, 7).to(device)
    actual = running_normalize(observation, make_moments(7, device), clip=0.7, implementation=implementation)
    assert torch.equal(actual, observation.clamp(-0.7, 0.7))


def test_rows_that_the_mask_excludes_are_normalized_but_do_not_count(implementation, device):
    observation, mask = random_rows(40, 6).to(device), torch.ones(40, dtype=torch.bool, device=device)
    mask[[3, 7]] = False
    observation[3] = torch.nan
    moments, expected = make_moments(6, device), make_moments(6, device)
    actual = running_normalize(observation, moments, mask=mask, implementation=implementation)
    gather_moments(observation[mask], expected, implementation=implementation)
    torch.testing.assert_close(moments, expected, rtol=1e-6, atol=1e-6)
    assert actual[3].isnan().all()
    assert torch.equal(actual[7], observation[7])


def test_a_nan_stays_in_its_column(implementation, device):
    observation = random_rows(40, 6).to(device)
    observation[5, 2] = torch.nan
    moments = make_moments(6, device)
    actual = running_normalize(observation, moments, implementation=implementation)
    assert moments.isnan().any(0).tolist() == [d == 2 for d in range(6)]
    assert actual.isnan().sum() == 1
    later = running_normalize(observation, moments, update=False, implementation=implementation)
    assert later.isnan().any(0).tolist() == [d == 2 for d in range(6)]


def test_gathered_moments_merge_exactly(implementation, device):
    batches = [random_rows(30, 5, seed) * (seed + 1) + 100 * seed for seed in range(4)]
    moments, expected = make_moments(5, device), moments_of(batches, [None] * 4)
    for pair in (batches[:2], batches[2:], []):
        gathered = make_moments(5, device)
        for batch in pair:
            gather_moments(batch.to(device), gathered, implementation=implementation)
        merge_moments(moments, gathered)
    assert_moments(moments, expected)
    mean, std = mean_and_std(moments)
    np.testing.assert_allclose(mean.cpu(), expected[1], rtol=1e-6)
    np.testing.assert_allclose(std.cpu(), np.concatenate(batches).std(0), rtol=1e-6)


@pytest.mark.parametrize("sizes", [[30], [30, 7, 1, 200], [0, 5], [5, 0, 3], [0, 0]])
def test_ranks_merge_into_the_moments_of_all_rows(sizes):
    """Float64 rows, so only the merge itself can lose digits; their offsets are far above their spread."""
    batches = [
        random_rows(size, 5, seed).double() * (seed + 1) + 1e3 * seed for seed, size in enumerate(sizes)
    ]
    ranks = torch.stack([make_moments(5) for _ in sizes])
    for rank, batch in zip(ranks, batches, strict=True):
        gather_moments(batch, rank)
    before = ranks.clone()
    merged = merge_all(ranks)
    np.testing.assert_allclose(merged, moments_of(batches, [None] * len(sizes)), rtol=1e-12, atol=1e-12)
    assert torch.equal(ranks, before)
    assert merged.data_ptr() != ranks.data_ptr()


def test_ranks_merge_in_their_order():
    ranks = torch.stack([make_moments(3) for _ in range(4)])
    for seed, rank in enumerate(ranks):
        gather_moments(random_rows(10 + seed, 3, seed), rank)
    one_by_one = make_moments(3)
    for rank in ranks:
        merge_moments(one_by_one, rank)
    assert torch.equal(merge_all(ranks), one_by_one)


def test_a_rank_that_saw_nothing_changes_no_bit():
    moments = make_moments(3)
    gather_moments(random_rows(10, 3), moments)
    for ranks in ([make_moments(3), moments], [moments, make_moments(3)]):
        assert torch.equal(merge_all(torch.stack(ranks)), moments)


@pytest.mark.parametrize("shape", [(3, 5), (0, 3, 5), (2, 2, 5)])
def test_moments_of_ranks_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match=r"merge_all: moments must be \[R, 3, D\] with R >= 1"):
        merge_all(torch.zeros(shape, dtype=torch.float64))


def test_values_are_normalized_and_restored(implementation, device):
    value = (random_rows(13, 31) * 40 - 300).to(device)
    mask = random_rows(13, 31, 1).to(device) > 0
    moments = make_moments(1, device)
    first = normalize_value(
        value.masked_fill(~mask, torch.nan), moments, mask=mask, implementation=implementation
    )
    assert torch.equal(first[mask], value[mask])
    assert_moments(moments, moments_of([value[mask][:, None]], [None]))
    normalized = normalize_value(value, moments, update=False, implementation=implementation)
    torch.testing.assert_close(normalized[mask].mean().item(), 0.0, rtol=0, atol=1e-5)
    torch.testing.assert_close(normalized[mask].std(correction=0).item(), 1.0)
    torch.testing.assert_close(denormalize_value(normalized, moments), value)
    half = denormalize_value(normalized.bfloat16(), moments)
    torch.testing.assert_close(half, value.bfloat16(), rtol=0.02, atol=1.0)


def test_denormalizing_is_differentiable():
    moments = make_moments(1)
    gather_moments(random_rows(50, 1) * 7, moments)
    value = random_rows(3, 2).requires_grad_()
    denormalize_value(value, moments).sum().backward()
    std = mean_and_std(moments)[1].float()
    torch.testing.assert_close(value.grad, std.expand(3, 2))


def test_any_shape_and_strides(implementation, device):
    rows = random_rows(60, 7).to(device)
    mask = random_rows(60, 1, 1).to(device).squeeze(1) > 0
    expected, moments = make_moments(7, device), make_moments(7, device)
    contiguous = running_normalize(rows, expected, mask=mask, implementation=implementation)
    strided, kept = (
        rows.t().contiguous().t().unflatten(0, (5, 12)),
        mask.repeat_interleave(2)[::2].view(5, 12),
    )
    actual = running_normalize(strided, moments, mask=kept, implementation=implementation)
    assert torch.equal(actual.flatten(0, 1), contiguous)
    assert torch.equal(moments, expected)
    one = running_normalize(rows[0], moments, update=False, implementation=implementation)
    assert one.shape == (7,)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (3, 0, 4)])
def test_empty(shape, implementation, device):
    moments = make_moments(shape[-1], device)
    observation = torch.zeros(shape, device=device)
    assert running_normalize(observation, moments, implementation=implementation).shape == shape
    gather_moments(observation, moments, implementation=implementation)
    assert (moments == 0).all()


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("observation", torch.zeros(())),
        ("observation", torch.zeros(4, 5, dtype=torch.int64)),
        ("moments", torch.zeros(3, 4, dtype=torch.float64)),
        ("moments", torch.zeros(3, 5)),
        ("moments", torch.zeros(3, 5, dtype=torch.float64, device="meta")),
        ("moments", torch.zeros(5, 3, dtype=torch.float64).t()),
        ("mask", torch.ones(4)),
        ("mask", torch.ones(4, 5, dtype=torch.bool)),
        ("clip", 0.0),
        ("clip", float("nan")),
        ("min_std", 0.0),
    ],
)
def test_an_input_that_does_not_fit_is_named(name, wrong):
    inputs = {"observation": torch.zeros(4, 5), "moments": make_moments(5)}
    with pytest.raises(ValueError, match=f"running_normalize: {name} must be"):
        running_normalize(**(inputs | {name: wrong}))


@pytest.mark.parametrize("chosen", ["reference", "cpu"])
def test_the_operators_pass_opcheck(chosen):
    inputs = make_running_inputs(5, 8)
    observation, moments, mask = inputs.values()
    operators = torch.ops.pi_incubator
    torch.library.opcheck(operators.running_normalize, (observation, moments, True, mask, 10.0, 1e-4, chosen))
    torch.library.opcheck(operators.gather_moments, (observation, moments, None, chosen))


def test_compiles_into_one_graph():
    def step(observation, moments, mask):
        normalized = running_normalize(observation, moments, mask=mask)
        gather_moments(observation, moments)
        return normalized + 0, mean_and_std(moments)

    inputs = make_running_inputs(5, 8)
    theirs = {name: x.clone() for name, x in inputs.items()}
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    actual, (mean, std) = compiled(**inputs)
    expected, (expected_mean, expected_std) = step(**theirs)
    assert torch.equal(inputs["moments"], theirs["moments"])
    assert torch.equal(actual, expected)
    assert torch.equal(mean, expected_mean)
    assert torch.equal(std, expected_std)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("shape", [(48, 4096), (200, 8192), (1, 98304)])
def test_on_hardware_in_a_graph_and_the_same_every_time(shape):
    inputs = make_running_inputs(*shape, device="cuda")
    start = inputs["moments"].clone()
    first = running_normalize(**inputs)  # builds the kernel
    once = inputs["moments"].clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        second = running_normalize(**inputs)
    inputs["moments"].copy_(start)
    graph.replay()
    assert torch.equal(first, second)
    assert torch.equal(inputs["moments"], once)
    running_normalize(**(inputs | {"moments": start}), implementation="reference")
    torch.testing.assert_close(once, start, rtol=1e-6, atol=1e-6)
