"""Advantages relative to a group in every implementation, against float64 and against Python's statistics."""

import os
import statistics

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels.group_advantage import group_advantage, make_inputs

NUM_CASES = 10 if os.environ.get("TRITON_INTERPRET") == "1" else 400
CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@st.composite
def batches(draw):
    """Arguments: one reward or several, groups of one to all, ids of any value, ties, masks."""
    size, num_groups, num_steps = (draw(st.integers(1, 9)) for _ in range(3))
    num_worlds = size * num_groups
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    shape = draw(st.sampled_from([(num_worlds,), (num_steps, num_worlds)]))
    if draw(st.booleans()):
        reward = torch.randint(2, shape, generator=generator).float()
    else:
        reward = torch.randn(shape, generator=generator) * draw(st.sampled_from([0.01, 1.0, 100.0]))
        reward += draw(st.sampled_from([0.0, 1.0, -30.0]))
    groups = size
    if draw(st.booleans()):
        groups = torch.randint(-num_groups, num_groups, (num_worlds,), generator=generator)
        groups = (groups * draw(st.sampled_from([1, 1000]))).to(
            draw(st.sampled_from([torch.int32, torch.int64]))
        )
    mask = None
    if draw(st.booleans()):
        mask = torch.rand(shape, generator=generator) < draw(st.sampled_from([0.2, 0.9]))
    return {"reward": reward, "groups": groups, "mask": mask}


def to(inputs, device):
    return {name: x.to(device) if torch.is_tensor(x) else x for name, x in inputs.items()}


def largest_difference(actual, expected):
    return (actual.double() - expected).abs().max().item()


def assert_exact(inputs, implementation):
    actual = group_advantage(**inputs, implementation=implementation)
    expected = group_advantage(**{**inputs, "reward": inputs["reward"].double()}, implementation="reference")
    assert (actual.dtype, actual.shape) == (torch.float32, expected.shape)
    assert largest_difference(actual, expected) <= 1e-5 * expected.abs().max().item()


@settings(max_examples=NUM_CASES, deadline=None, suppress_health_check=CHECKS)
@given(inputs=batches())
def test_equals_float64(inputs, implementation, device):
    assert_exact(to(inputs, device), implementation)


@pytest.mark.parametrize("shape", [(1, 1), (3, 129), (2, 300), (211, 3)])
def test_equals_float64_at_the_edges_of_blocks(shape, implementation, device):
    inputs = make_inputs(*shape, device=device)
    assert_exact(inputs, implementation)
    assert_exact({**inputs, "groups": shape[1]}, implementation)


def test_equals_the_statistics_of_each_group(implementation, device):
    inputs = make_inputs(4, 40, device=device)
    reward, groups, mask = (inputs[name].tolist() for name in ("reward", "groups", "mask"))
    actual = group_advantage(**inputs, eps=0.5, implementation=implementation).tolist()
    for g in set(groups):
        entries = [(t, n) for t in range(4) for n in range(40) if groups[n] == g and mask[t][n]]
        rewards = [reward[t][n] for t, n in entries]
        mean, std = statistics.mean(rewards), statistics.stdev(rewards)
        for t, n in entries:
            assert actual[t][n] == pytest.approx((reward[t][n] - mean) / (std + 0.5), rel=1e-5, abs=1e-6)


def test_neighbours_equal_ids(implementation, device):
    reward = make_inputs(3, 24, device=device)["reward"]
    by_size = group_advantage(reward, 4, implementation=implementation)
    ids = torch.arange(24, device=device) // 4
    torch.testing.assert_close(group_advantage(reward, ids, implementation=implementation), by_size)
    shuffled = torch.randperm(24, generator=torch.Generator().manual_seed(0)).to(device)
    actual = group_advantage(reward[:, shuffled], -7 * ids[shuffled], implementation=implementation)
    torch.testing.assert_close(actual, by_size[:, shuffled])


@pytest.mark.parametrize("size", [1, 2, 7, 201])
def test_equal_rewards_make_exactly_zero(size, implementation, device):
    reward = torch.tensor([3.7, -0.1, 1e-3], device=device).repeat_interleave(size)
    assert (group_advantage(reward, size, implementation=implementation) == 0).all()
    ids = torch.arange(3, device=device).repeat_interleave(size).flip(0)
    assert (group_advantage(reward.flip(0), ids, implementation=implementation) == 0).all()


def test_an_offset_far_above_the_spread(implementation, device):
    reward = make_inputs(1, 40, device=device)["reward"] + 1e4
    exact = group_advantage(reward.double(), 8, implementation="reference")
    assert largest_difference(group_advantage(reward, 8, implementation=implementation), exact) <= 1e-5


def test_a_mask_selects(implementation, device):
    inputs = make_inputs(3, 40, device=device)
    kept = inputs["mask"]
    inputs["mask"][:, 5] = False
    hidden = {**inputs, "reward": inputs["reward"].masked_fill(~kept, torch.nan)}
    actual = group_advantage(**hidden, implementation=implementation)
    assert torch.equal(actual, group_advantage(**inputs, implementation=implementation))
    assert (actual[~kept] == 0).all()


@pytest.mark.parametrize("as_ids", [False, True])
def test_nan_stays_in_its_group(as_ids, implementation, device):
    reward = make_inputs(3, 12, device=device)["reward"]
    groups = torch.arange(12, device=device) // 4 if as_ids else 4
    clean = group_advantage(reward, groups, implementation=implementation)
    reward[1, 5] = torch.nan
    actual = group_advantage(reward, groups, implementation=implementation)
    assert torch.equal(actual[:, :4], clean[:, :4])
    assert torch.equal(actual[:, 8:], clean[:, 8:])
    assert actual[:, 4:8].isnan().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype, implementation, device):
    inputs = make_inputs(5, 31, device=device, dtype=dtype)
    exact = group_advantage(**{**inputs, "reward": inputs["reward"].double()}, implementation="reference")
    actual = group_advantage(**inputs, implementation=implementation)
    assert actual.dtype == dtype
    assert largest_difference(actual, exact) <= torch.finfo(dtype).eps * exact.abs().max().item()


def test_other_strides(implementation, device):
    inputs = make_inputs(13, 31, device=device)
    strided = {
        "reward": inputs["reward"].t().contiguous().t(),
        "groups": inputs["groups"].repeat_interleave(2)[::2],
        "mask": inputs["mask"].t().contiguous().t(),
    }
    expected = group_advantage(**inputs, implementation=implementation)
    assert torch.equal(group_advantage(**strided, implementation=implementation), expected)


@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0)])
def test_empty(shape, implementation, device):
    reward = torch.zeros(shape, device=device)
    groups = torch.zeros(shape[-1], dtype=torch.int64, device=device)
    assert group_advantage(reward, groups, implementation=implementation).shape == shape
    assert group_advantage(reward, 2, implementation=implementation).shape == shape


@pytest.mark.parametrize(
    ("argument", "wrong"),
    [
        ("reward", torch.zeros(4, 6, 1)),
        ("reward", torch.zeros(4, 6, dtype=torch.int64)),
        ("groups", 4),
        ("groups", 0),
        ("groups", torch.zeros(5, dtype=torch.int64)),
        ("groups", torch.zeros(6)),
        ("groups", torch.zeros(6, dtype=torch.int64, device="meta")),
        ("mask", torch.zeros(6, dtype=torch.bool)),
        ("mask", torch.zeros(4, 6)),
        ("eps", 0.0),
    ],
)
def test_an_input_that_does_not_fit_is_named(argument, wrong):
    with pytest.raises(ValueError, match=f"group_advantage: {argument} must"):
        group_advantage(**{**make_inputs(4, 6), argument: wrong})


@pytest.mark.parametrize("chosen", ["reference", "cpu"])
def test_the_operator_passes_opcheck(chosen):
    inputs = make_inputs(3, 10)
    operator = torch.ops.pi_incubator.group_advantage
    torch.library.opcheck(operator, (inputs["reward"], inputs["groups"], 0, inputs["mask"], 1e-6, chosen))
    torch.library.opcheck(operator, (inputs["reward"][0], None, 5, None, 1e-6, chosen))


def test_compiles_into_one_graph():
    compiled = torch.compile(group_advantage, fullgraph=True, backend="aot_eager")
    inputs = make_inputs(3, 10)
    inputs["reward"].requires_grad_()
    actual = compiled(**inputs)
    assert not actual.requires_grad
    assert torch.equal(actual, group_advantage(**inputs))
    assert torch.equal(compiled(inputs["reward"], 5), group_advantage(inputs["reward"], 5))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("shape", [(1, 65536), (128, 8192)])
def test_on_hardware_in_a_graph_and_the_same_every_time(shape):
    inputs = make_inputs(*shape, device="cuda")
    first = group_advantage(**inputs)  # builds the kernel
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        second = group_advantage(**inputs)
    graph.replay()
    assert torch.equal(first, second)
    assert_exact(inputs, "triton")
