"""Prioritized replay: steps come as often as their priority says, and weights undo it."""

import pytest
import torch
from scipy import stats

from envs_gpu.vec_env import EnvSpec
from pi_incubator.data.replay.prioritized import EPSILON, Prioritized
from pi_incubator.data.sharded import ShardedRandom

CPU = torch.device("cpu")
N = 4
SPEC = EnvSpec("toy", N, {"policy": 1}, 1, (-1.0,), (1.0,), ("a",), 50.0, 100, CPU)


def make(capacity=6 * N, shards=1, **options):
    random = ShardedRandom(0, "replay", range(shards), CPU)
    return Prioritized(capacity, SPEC, ["policy"], random, **options)


def step(t, broken=()):
    """A step whose reward says when and where it was."""
    no = torch.zeros(N, dtype=torch.bool)
    valid = ~torch.isin(torch.arange(N), torch.tensor(broken, dtype=torch.int64))
    zeros = torch.zeros(N, 1)
    return {
        "obs.policy": zeros,
        "next.policy": zeros,
        "action": zeros,
        "reward": 100.0 * t + torch.arange(N),
        "terminated": ~valid,
        "truncated": no,
        "valid": valid,
    }


def filled(num_steps=6, **options):
    buffer = make(**options)
    for t in range(num_steps):
        buffer.add(step(t))
    return buffer


def counts_of(buffer, size, rounds=1):
    """How often each place was sampled, `[places]`."""
    counts = torch.zeros(buffer.capacity)
    for _ in range(rounds):
        counts += torch.bincount(buffer.sample(size)["index"], minlength=buffer.capacity)
    return counts


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("exponent", [1.0, 0.6])
def test_steps_come_in_proportion_to_their_priority(exponent, shards):
    """Chi-square against the exact distribution; each shard gives half of the samples."""
    buffer = filled(exponent=exponent, shards=shards)
    surprise = 0.1 + torch.rand(buffer.capacity, generator=torch.Generator().manual_seed(0))
    by_shard = torch.arange(buffer.capacity).view(-1, shards, N // shards).transpose(0, 1).flatten()
    buffer.update_priority(by_shard, surprise[by_shard])
    priority = (surprise + EPSILON).double() ** exponent
    of_shard = torch.arange(buffer.capacity) % N // (N // shards)
    expected = torch.zeros_like(priority)
    for shard in range(shards):
        own = of_shard == shard
        expected[own] = priority[own] / priority[own].sum() / shards
    observed = counts_of(buffer, 20, rounds=2000)
    # Stratified numbers are spread more evenly than independent ones, which only makes the sum smaller.
    assert stats.chisquare(observed.numpy(), (expected * observed.sum()).numpy()).pvalue > 1e-3
    assert (observed - expected * 40_000).abs().max() < 0.1 * (expected * 40_000).max()


def test_weights_make_the_mean_that_of_uniform_sampling():
    """Section 3.4 with beta of 1: a weighted mean of anything is its mean over the buffer."""
    buffer = filled(exponent=1.0, correction=1.0)
    surprise = 0.1 + torch.rand(buffer.capacity, generator=torch.Generator().manual_seed(0))
    buffer.update_priority(torch.arange(buffer.capacity), surprise)
    sample = buffer.sample(40_000)
    mean = (sample["weight"] * sample["reward"]).sum() / sample["weight"].sum()
    assert float(mean) == pytest.approx(float(buffer.state_dict()["reward"].mean()), rel=0.01)
    assert float(sample["weight"].max()) == 1.0


def test_a_new_step_has_the_largest_priority_and_a_broken_one_none():
    buffer = filled(num_steps=3, exponent=1.0)
    buffer.update_priority(torch.arange(3 * N), torch.full((3 * N,), 0.5))
    buffer.update_priority(torch.tensor([2]), torch.tensor([8.0]))
    buffer.add(step(3, broken=(1,)))
    places = counts_of(buffer, 1000)
    assert places[3 * N + 1] == 0
    assert places[[3 * N, 3 * N + 2, 3 * N + 3]].min() > 10 * places[[0, 1, 3]].max()


def test_the_oldest_steps_make_room_with_their_priority():
    buffer = filled(num_steps=6, exponent=1.0)
    buffer.update_priority(torch.arange(N), torch.full((N,), 1e6))
    buffer.add(step(6))
    rewards = buffer.sample(500)["reward"]
    assert (rewards >= 100).all()
    assert (rewards >= 600).any()


def test_what_is_not_finite_changes_no_priority():
    buffer = filled(exponent=1.0)
    before = buffer.state_dict()["priority.0"].clone()
    buffer.update_priority(torch.tensor([0, 1]), torch.tensor([float("nan"), float("inf")]))
    assert torch.equal(buffer.state_dict()["priority.0"], before)
    assert buffer.state_dict()["largest_priority"] == 1.0


def test_a_broken_step_is_never_sampled():
    buffer = filled(num_steps=3, exponent=1.0)
    buffer.add(step(3, broken=(1,)))
    buffer.update_priority(torch.tensor([3 * N + 1]), torch.tensor([5.0]))
    assert counts_of(buffer, 1000)[3 * N + 1] == 0


def test_an_exponent_of_zero_is_uniform():
    buffer = filled(exponent=0.0)
    buffer.update_priority(torch.arange(N), torch.full((N,), 1e6))
    sample = buffer.sample(24)
    assert sorted(sample["index"].tolist()) == list(range(24))  # one in each stratum
    assert torch.equal(sample["weight"], torch.ones(24))


@pytest.mark.parametrize("num_steps", [3, 9])
def test_it_continues_bit_for_bit(num_steps):
    one, other = filled(num_steps), make()
    one.update_priority(torch.arange(8), torch.arange(8.0))
    other.load_state_dict({name: value.clone() for name, value in one.state_dict().items()})
    other._random.load_state_dict(one._random.state_dict())
    for buffer in (one, other):
        buffer.add(step(num_steps))
    ours, theirs = one.sample(100), other.sample(100)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
