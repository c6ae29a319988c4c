"""The replay ring: what it stores of the worlds, and what it samples."""

import pytest
import torch
from tensordict import TensorDict

from envs_gpu.make import make_env
from envs_gpu.vec_env import EnvSpec, StepResult
from pi_incubator.data.replay.replay import steps_of
from pi_incubator.data.replay.ring import Ring
from pi_incubator.data.sharded import ShardedRandom
from tests.envs import record_results

CPU = torch.device("cpu")
N = 4
NO_STATE = torch.zeros(N, 0)
SPEC = EnvSpec("toy", N, {"policy": 3}, 2, (-1.0,) * 2, (1.0,) * 2, ("a", "b"), 50.0, 100, CPU)
CHI_SQUARE = {15: 37.7, 23: 49.7}
"""Degrees of freedom -> what chance exceeds once in a thousand times."""


def make_ring(capacity, shards=1, spec=SPEC):
    random = ShardedRandom(0, "replay", range(shards), CPU)
    return Ring(capacity, spec, ["policy"], random), random


def numbered(t):
    """A step whose every number says when and where it was."""
    code = 100.0 * t + torch.arange(N)  # [N]
    return {
        "obs.policy": code[:, None] + torch.tensor([0.1, 0.2, 0.3]),
        "next.policy": code[:, None] + torch.tensor([0.4, 0.5, 0.6]),
        "action": code[:, None] + torch.tensor([0.7, 0.8]),
        "reward": code,
        "terminated": torch.full((N,), t % 2 == 0),
        "truncated": torch.arange(N) == t % N,
        "valid": torch.arange(N) != (t + 1) % N,
    }


def rows_of(batch):
    """The sampled steps as `numbered` made them: `(t, world)` -> the row of every tensor."""
    places = [(int(code) // 100, int(code) % 100) for code in batch["reward"].round().tolist()]
    return {place: {name: value[i] for name, value in batch.items()} for i, place in enumerate(places)}


@pytest.fixture
def recorded():
    """A ring that was filled from worlds in which an episode falls and one is cut off, and what they gave."""
    env = make_env("inverted_pendulum", num_envs=8, device=CPU, seed=0)
    env._episode_step[0] = env.spec.max_episode_steps - 3
    ring, _ = make_ring(8 * 40, spec=env.spec)
    results, random, before = record_results(env), torch.Generator().manual_seed(0), []
    for _ in range(40):
        before.append(env.obs["policy"].clone())
        action = torch.rand(8, 1, generator=random) * torch.arange(8)[:, None] / 4.0  # some fall soon
        obs = {"policy": before[-1]}
        ring.add(steps_of(obs, NO_STATE, action, env.step(action), ["policy"]))
    yield ring.state_dict(), before, results
    env.close()


def test_observations_are_raw_and_the_last_one_of_an_episode_is_its_own(recorded):
    stored, before, results = recorded
    assert torch.equal(stored["obs.policy"], torch.stack(before))
    assert torch.equal(stored["next.policy"], torch.stack([r.final_obs["policy"] for r in results]))
    assert torch.equal(stored["reward"], torch.stack([r.reward for r in results]))
    following = torch.stack([r.obs["policy"] for r in results])
    done = stored["terminated"] | stored["truncated"]
    assert stored["truncated"][2, 0]
    assert not torch.equal(stored["next.policy"][2, 0], following[2, 0])  # the next episode begins there
    assert torch.equal(stored["next.policy"][~done], following[~done])


def test_the_ends_of_the_task_and_of_the_time_are_kept_apart(recorded):
    stored, _, results = recorded
    for name in ("terminated", "truncated"):
        assert torch.equal(stored[name], torch.stack([getattr(r, name) for r in results]))
        assert stored[name].any()
    assert not (stored["terminated"] & stored["truncated"]).any()
    assert stored["valid"].all()


def test_a_broken_step_is_marked():
    env = make_env("inverted_pendulum", num_envs=8, device=CPU, seed=0)
    ring, _ = make_ring(8, spec=env.spec)
    obs, action = {"policy": env.obs["policy"].clone()}, torch.zeros(8, 1)
    env.physics.state.qvel[5] = torch.nan
    ring.add(steps_of(obs, NO_STATE, action, env.step(action), ["policy"]))
    env.close()
    stored = ring.state_dict()
    assert stored["valid"][0].tolist() == [world != 5 for world in range(8)]
    assert all(stored[name].isfinite().all() for name in ("obs.policy", "next.policy", "reward"))


@pytest.mark.parametrize("num_added", [1, 4, 6, 15])
def test_samples_are_whole_steps_of_the_newest(num_added):
    """A ring of 6 steps of each world, not yet full, just full, and overwritten more than twice."""
    ring, _ = make_ring(6 * N + 1)  # what is left of a step of every world is not used
    for t in range(num_added):
        ring.add(numbered(t))
    rows = rows_of(ring.sample(2000))
    newest = range(max(0, num_added - 6), num_added)
    assert len(ring) == len(newest) * N
    assert set(rows) == {(t, world) for t in newest for world in range(N)}
    for (t, world), row in rows.items():
        for name, value in numbered(t).items():
            assert torch.equal(row[name], value[world]), name


@pytest.mark.parametrize("num_added", [4, 15])
def test_every_step_is_equally_likely(num_added):
    ring, _ = make_ring(6 * N)
    for t in range(num_added):
        ring.add(numbered(t))
    expected = 1000
    codes = ring.sample(len(ring) * expected)["reward"]
    counts = codes.unique(return_counts=True)[1].double()
    assert len(counts) == len(ring)
    statistic = ((counts - expected).square() / expected).sum()
    assert statistic < CHI_SQUARE[len(ring) - 1]


def test_a_shard_samples_from_its_own_worlds():
    """Half of a minibatch is from the first worlds, half from the last; each step is as likely as any."""
    ring, _ = make_ring(6 * N, shards=2)
    for t in range(9):
        ring.add(numbered(t))
    worlds = ring.sample(4000)["reward"].round().long() % 100
    assert worlds[:2000].unique().tolist() == [0, 1]
    assert worlds[2000:].unique().tolist() == [2, 3]


def test_two_shards_sample_what_two_rings_with_one_each_sample():
    spec = EnvSpec("half", N // 2, SPEC.obs_dims, 2, *((x,) * 2 for x in (-1.0, 1.0)), ("a",), 50.0, 100, CPU)
    whole, _ = make_ring(6 * N, shards=2)
    halves = [
        Ring(3 * N, spec, ["policy"], ShardedRandom(0, "replay", range(shard, shard + 1), CPU))
        for shard in range(2)
    ]
    for t in range(9):
        whole.add(numbered(t))
        for shard, half in enumerate(halves):
            worlds = slice(shard * N // 2, (shard + 1) * N // 2)
            half.add({name: value[worlds] for name, value in numbered(t).items()})
    together, apart = whole.sample(20), [half.sample(10) for half in halves]
    for name in together.keys():  # noqa: SIM118 - of a TensorDict
        assert torch.equal(together[name], torch.cat([half[name] for half in apart])), name


@pytest.mark.parametrize("num_added", [0, 4, 15])
def test_a_ring_continues_bit_for_bit(num_added):
    (one, random), (other, others) = make_ring(6 * N), make_ring(6 * N)
    for t in range(num_added):
        one.add(numbered(t))
    saved = one.state_dict()
    other.load_state_dict(saved)
    others.load_state_dict(random.state_dict())
    for name, value in other.state_dict().items():
        assert torch.equal(value, saved[name]), name
    for ring in (one, other):
        ring.add(numbered(num_added))  # over the oldest
    ours, theirs = one.sample(100), other.sample(100)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert len(one) == len(other)


def test_the_action_of_a_broken_world_is_stored_as_zero():
    """A diverged policy's NaN never enters the buffer: the env has made everything else finite already."""
    obs = TensorDict({"policy": torch.ones(2, 3)}, batch_size=[2])
    no, broken = torch.zeros(2, dtype=torch.bool), torch.tensor([False, True])
    result = StepResult(obs, torch.zeros(2), broken, no, obs, {}, broken)
    action = torch.tensor([[0.5], [float("nan")]])
    steps = steps_of(obs, NO_STATE, action, result, ["policy"])
    assert steps["action"].tolist() == [[0.5], [0.0]]
    assert steps["valid"].tolist() == [True, False]


def test_a_ring_counts_what_it_holds_and_how_large_it_may_be():
    """Whole steps of all worlds, one at least."""
    ring, _ = make_ring(4 * N + N - 1)
    for t in range(6):
        assert len(ring) == N * min(t, 4)
        assert ring.capacity == 4 * N
        ring.add(numbered(t))
    smallest, _ = make_ring(1)
    smallest.add(numbered(3))
    assert len(smallest) == N
    assert {when for when, _ in rows_of(smallest.sample(64))} == {3}


@pytest.mark.parametrize("count", [-1, 2, 4, 100])
def test_steps_that_were_saved_fit_their_count_or_are_refused(count):
    """A count of others than the steps that are there would sample what was never stored; nothing changes."""
    full, _ = make_ring(8 * N)
    for t in range(3):
        full.add(numbered(t))
    ring, _ = make_ring(8 * N)
    ring.add(numbered(9))
    with pytest.raises(ValueError, match="steps, needed is"):
        ring.load_state_dict(full.state_dict() | {"count": torch.tensor(count)})
    with pytest.raises(ValueError, match="'reward'"):
        ring.load_state_dict(full.state_dict() | {"reward": torch.zeros(1, N)})  # would be copied three times
    assert {when for when, _ in rows_of(ring.sample(64))} == {9}


def plain_step(t, terminated=(), truncated=(), broken=()):
    """A step of reward 10^-world that ends nothing but the named worlds."""
    worlds = torch.arange(N)

    def flags(chosen):
        return torch.isin(worlds, torch.tensor(chosen, dtype=torch.int64))

    ended = {"terminated": flags([*terminated, *broken]), "truncated": flags(truncated)}
    return numbered(t) | ended | {"reward": torch.full((N,), 1.0 + t), "valid": ~flags(broken)}


def sum_by_hand(added, t, world, n_step, gamma):
    """The n-step return of the step at `t`, over how many steps, and the step that it ends with."""
    total, last = 0.0, t
    for k in range(n_step):
        step = added.get(t + k)
        if step is None or (k and not step["valid"][world]):
            break
        total, last = total + gamma**k * float(step["reward"][world]), t + k
        if step["terminated"][world] or step["truncated"][world]:
            break
    return total, last - t + 1, last


@pytest.mark.parametrize("num_added", [3, 6, 9])
@pytest.mark.parametrize("n_step", [1, 3, 6])
def test_sums_of_rewards_end_with_episodes_before_broken_steps_and_at_the_newest(n_step, num_added):
    """Compared with a loop over the steps that were added, for every step that the ring holds."""
    random = ShardedRandom(0, "replay", range(1), CPU)
    ring = Ring(6 * N, SPEC, ["policy"], random, n_step=n_step, gamma=0.5)
    ends = {2: {"terminated": (0,)}, 4: {"truncated": (1,)}, 5: {"broken": (2,)}}
    added = {t: plain_step(t, **ends.get(t, {})) for t in range(num_added)}
    for step in added.values():
        ring.add(step)
    held = {t: added[t] for t in range(max(0, num_added - 6), num_added)}
    places = torch.arange(len(held) * N)
    sample = ring.steps_at(places)
    for place in places.tolist():
        t = round(float(sample["obs.policy"][place, 0] - 0.1)) // 100
        world = place % N
        total, num_steps, last = sum_by_hand(held, t, world, n_step, 0.5)
        assert sample["reward"][place] == pytest.approx(total)
        assert sample["num_steps"][place] == num_steps
        assert torch.equal(sample["action"][place], held[t]["action"][world])
        assert torch.equal(sample["valid"][place], held[t]["valid"][world])
        for name in ("next.policy", "terminated", "truncated"):
            assert torch.equal(sample[name][place], held[last][name][world]), name


def test_observations_can_be_stored_in_half_the_memory():
    random = ShardedRandom(0, "replay", range(1), CPU)
    ring = Ring(6 * N, SPEC, ["policy"], random, dtype=torch.bfloat16)
    ring.add(numbered(1))
    assert ring.state_dict()["obs.policy"].dtype == torch.bfloat16
    sample = ring.sample(50)
    assert sample["obs.policy"].dtype == sample["reward"].dtype == torch.float32
    whole = sample["reward"].unsqueeze(-1) + torch.tensor([0.4, 0.5, 0.6])
    assert torch.equal(sample["next.policy"], whole.bfloat16().float())
