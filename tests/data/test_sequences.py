"""Windows of steps: what they hold, against the steps that were added, and where they may lie."""

import pytest
import torch
from scipy import stats

from envs_gpu.vec_env import EnvSpec
from pi_incubator.data.replay.sequences import Windows
from pi_incubator.data.sharded import ShardedRandom

CPU = torch.device("cpu")
N, S, LENGTH = 4, 2, 10


def make(capacity=LENGTH * N, shards=1, num_worlds=N, first_shard=0, length=3, burn_in=2, **options):
    spec = EnvSpec("toy", num_worlds, {"policy": 1}, 1, (-1.0,), (1.0,), ("a",), 50.0, 100, CPU)
    random = ShardedRandom(0, "replay", range(first_shard, first_shard + shards), CPU)
    sizes = {"length": length, "burn_in": burn_in, "state_width": S}
    return Windows(capacity, spec, ["policy"], random, **sizes, **options)


def step(t):
    """A step whose numbers say when and where it was; world 0 falls at every fourth, world 1 is cut off at
    every third, and world 2 breaks at every fifth step."""
    code, worlds = 100.0 * t + torch.arange(N), torch.arange(N)
    broken = (worlds == 2) & (t % 5 == 0)
    return {
        "obs.policy": code[:, None],
        "next.policy": code[:, None] + 0.5,
        "action": code[:, None],
        "reward": code,
        "terminated": ((worlds == 0) & (t % 4 == 0)) | broken,
        "truncated": (worlds == 1) & (t % 3 == 0),
        "valid": ~broken,
        "state": code[:, None] + torch.tensor([0.1, 0.2]),
    }


def filled(num_steps=14, **options):
    buffer = make(**options)
    for t in range(num_steps):
        buffer.add(step(t))
    return buffer


def when_and_where(sample):
    """First times and worlds of the windows, each `[n]`."""
    code = sample["obs.policy"][:, 0, 0].long()
    return code // 100, code % 100


@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize("burn_in", [0, 2])
@pytest.mark.parametrize("num_added", [8, 14])
def test_a_window_holds_successive_steps_of_one_world(n_step, burn_in, num_added):
    """Also where it lies over the end of the tensors; only where its first step is, `state` was stored."""
    buffer = filled(num_added, burn_in=burn_in, n_step=n_step, gamma=0.5)
    sample = buffer.sample(3 * 200)
    width = burn_in + 3 + n_step - 1
    assert sample.batch_size == (200,)
    assert sample["obs.policy"].shape == (200, width, 1)
    assert sample["next.policy"].shape == (200, 3, 1)
    for first, world, window in zip(*when_and_where(sample), sample, strict=True):
        times = range(int(first), int(first) + width)
        assert max(0, num_added - LENGTH) <= times[0]
        assert times[-1] < num_added
        steps = [{name: value[world] for name, value in step(t).items()} for t in times]
        assert torch.equal(window["obs.policy"], torch.stack([one["obs.policy"] for one in steps]))
        assert torch.equal(window["state"], steps[0]["state"])
        ended = [bool(one["terminated"] | one["truncated"]) for one in steps]
        assert window["starts"].tolist() == [False, *ended[:-1]]
        for k, one in enumerate(steps[burn_in : burn_in + 3]):
            assert torch.equal(window["action"][k], one["action"])
            assert window["valid"][k] == one["valid"]
            last = burn_in + k + int(window["num_steps"][k]) - 1  # of the n-step return
            assert torch.equal(window["next.policy"][k], steps[last]["next.policy"])
            assert window["terminated"][k] == steps[last]["terminated"]
            whole = not any(ended[burn_in + k : last])
            assert whole
            cut = last + 1 < width and (ended[last] or not steps[last + 1]["valid"])
            assert window["num_steps"][k] == n_step or cut
            summed = steps[burn_in + k : last + 1]
            total = sum(0.5**j * float(one["reward"]) for j, one in enumerate(summed))
            assert float(window["reward"][k]) == pytest.approx(total)


@pytest.mark.parametrize("shards", [1, 2])
def test_every_place_is_equally_likely(shards):
    """Chi-square over the places at which a window can begin: six times in each of four worlds."""
    first, world = when_and_where(filled(14, shards=shards).sample(3 * 24_000))
    counts = torch.zeros(14, N, dtype=torch.int64)
    counts.index_put_((first, world), torch.ones_like(first), accumulate=True)
    assert counts[:4].sum() == counts[10:].sum() == 0
    assert stats.chisquare(counts[4:10].flatten().numpy()).pvalue > 1e-3


def test_two_shards_sample_what_two_buffers_with_one_each_sample():
    whole = filled(14, shards=2)
    halves = [make(LENGTH * N // 2, num_worlds=N // 2, first_shard=shard) for shard in range(2)]
    for t in range(14):
        for shard, half in enumerate(halves):
            own = slice(shard * N // 2, (shard + 1) * N // 2)
            half.add({name: value[own] for name, value in step(t).items()})
    together, apart = whole.sample(24), [half.sample(12) for half in halves]
    for name in set(together.keys()) - {"index"}:  # where steps are stored differs
        assert torch.equal(together[name], torch.cat([half[name] for half in apart])), name


def test_it_says_how_many_steps_a_window_needs():
    """With so many it gives the only window that there is."""
    buffer = filled(5)
    assert buffer.fewest == 5 * N == len(buffer)
    assert when_and_where(buffer.sample(30))[0].unique().tolist() == [0]
    assert make(n_step=4).fewest == 8 * N


def test_a_window_of_one_step_begins_no_episode():
    """The stored state says whether its step does."""
    sample = filled(14, length=1, burn_in=0).sample(20)
    assert sample["starts"].shape == (20, 1)
    assert not sample["starts"].any()


def test_renewed_states_replace_those_before_the_sampled_steps():
    """A step that is in several windows has its state in the last of them; no other state changes."""
    buffer = filled(LENGTH, burn_in=0)
    before = buffer.state_dict()["state"].clone()
    index = torch.tensor([[0, 4, 8], [4, 8, 12], [9, 13, 17], [4, 8, 12]])
    states = torch.arange(4 * 3 * S).view(4, 3, S) + 0.5
    buffer.renew_states(index, states)
    expected = before.flatten(0, 1).clone()
    for window in range(4):
        for t in range(3):
            expected[index[window, t]] = states[window, t]
    assert torch.equal(buffer.state_dict()["state"].flatten(0, 1), expected)


@pytest.mark.parametrize("num_steps", [6, 14])
def test_it_continues_bit_for_bit(num_steps):
    one, other = filled(num_steps), make()
    other.load_state_dict({name: value.clone() for name, value in one.state_dict().items()})
    other._random.load_state_dict(one._random.state_dict())
    for buffer in (one, other):
        buffer.add(step(num_steps))
    ours, theirs = one.sample(30), other.sample(30)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
