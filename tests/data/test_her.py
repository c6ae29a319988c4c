"""Hindsight replay: which goals are taken, and what relabelled steps hold, against loops over the steps."""

import pytest
import torch
from scipy import stats

from envs_gpu.goals import Goals, ObservedGoals
from envs_gpu.observation import ObservationTerm
from envs_gpu.vec_env import EnvSpec
from pi_incubator.data.replay.her import Her
from pi_incubator.data.sharded import ShardedRandom

CPU = torch.device("cpu")
N, GAMMA = 4, 0.5
LOW, HIGH = ((x,) for x in (-1.0, 1.0))
OBSERVED = {"policy": 2, "critic": 4}


def term(name, kind="sensor"):
    commands = ("goal_m",) if kind == "command" else ()
    return ObservationTerm(name, 1, lambda state, episode: None, kind=kind, commands=commands)


SPEED, GOAL, PLACE, WAY = term("speed"), term("goal", "command"), term("place"), term("way")
TERMS = {"policy": (SPEED, GOAL), "critic": (SPEED, GOAL, PLACE, WAY)}
GOALS = Goals(
    "goal",
    "place",
    lambda place, goal, value: {
        "near": value["near_weight"] * (-(place - goal).abs().squeeze(-1)).exp(),
        "there": 2.0 * (place == goal).squeeze(-1),
    },
    parameters=("near_weight",),
    dependent={"way": lambda place, goal: goal - place},
)


def make(capacity=8 * N, shards=1, num_worlds=N, first_shard=0, longest=100, **options):
    spec = EnvSpec("toy", num_worlds, OBSERVED, 1, LOW, HIGH, ("a",), 50.0, longest, CPU)
    weights = {"near_weight": torch.ones(num_worlds)}
    random = ShardedRandom(0, "replay", range(first_shard, first_shard + shards), CPU)
    buffer = Her(
        capacity,
        spec,
        ["policy", "critic"],
        random,
        goals=ObservedGoals(GOALS, TERMS),
        parameters=weights,
        max_episode_steps=longest,
        **options,
    )
    buffer.weights = weights["near_weight"]
    return buffer


def observed(t, goal):
    """Speed and place tell when and where: the place is `10 t + world`."""
    place = 10.0 * t + torch.arange(N)
    return {
        "policy": torch.stack((place / 7.0, goal), -1),
        "critic": torch.stack((place / 7.0, goal, place, goal - place), -1),
    }


def step(t, goal, next_goal=None, terminated=(), truncated=(), broken=(), weight=1.0):
    """A step from place `10 t + world` to `10 (t + 1) + world`, rewarded for its goal, as a task would."""
    next_goal = goal if next_goal is None else next_goal
    before, after = observed(t, goal), observed(t + 1, next_goal)
    flags = {name: torch.zeros(N, dtype=torch.bool) for name in ("terminated", "truncated", "broken")}
    for name, worlds in (("terminated", terminated), ("truncated", truncated), ("broken", broken)):
        flags[name][list(worlds)] = True
    valid = ~flags["broken"]
    distance = (after["critic"][:, 2] - goal).abs()
    reward = 0.01 * t + weight * (-distance).exp() + 2.0 * (distance == 0)  # the first term is for effort
    return {
        **{f"obs.{group}": value for group, value in before.items()},
        **{f"next.{group}": torch.where(valid[:, None], value, 0.0) for group, value in after.items()},
        "action": torch.full((N, 1), float(t)),
        "reward": torch.where(valid, reward, 0.0),
        "terminated": flags["terminated"] | flags["broken"],
        "truncated": flags["truncated"],
        "valid": valid,
    }


FIRST, SECOND = (torch.full((N,), value) + torch.arange(N) for value in (3.0, 5.0))


def scene(num_steps=14):
    """Steps in which world 0 goes on, 1 falls after 4 and 8, 2 breaks at 6, 3 is cut off after 9; the goal of
    world 0 changes after step 7."""
    steps = []
    for t in range(num_steps):
        goal, next_goal = FIRST.clone(), FIRST.clone()
        goal[0], next_goal[0] = (FIRST if t <= 7 else SECOND)[0], (FIRST if t < 7 else SECOND)[0]
        ends = {"terminated": [1] * (t in (4, 8)), "broken": [2] * (t == 6), "truncated": [3] * (t == 9)}
        steps.append(step(t, goal, next_goal, **ends))
    return steps


def filled(num_steps=14, **options):
    buffer = make(**options)
    for added in scene(num_steps):
        buffer.add(added)
    return buffer


def future_of(steps, t, world, oldest=0):
    """Times of the steps whose goals may be taken for the one at `t`, by the definition."""
    times = []
    for later in range(max(t, oldest), len(steps)):
        if not steps[later]["valid"][world]:
            break
        times.append(later)
        if steps[later]["terminated"][world] or steps[later]["truncated"][world]:
            break
    return times


def places_of(buffer, num_added):
    """`(t, world)` -> place in the buffer."""
    length = buffer.capacity // N
    held = range(max(0, num_added - length), num_added)
    return {(t, world): t % length * N + world for t in held for world in range(N)}


@pytest.mark.parametrize("num_added", [3, 8, 14])
def test_every_later_step_of_the_episode_that_is_held_can_be_taken_and_no_other(num_added):
    """Neither one of another episode, nor a broken one, nor one beyond the newest step."""
    steps, buffer = scene(num_added), filled(num_added)
    for (t, world), place in places_of(buffer, num_added).items():
        index = torch.full((300,), place)
        found = (buffer._future(index) // N).unique().tolist()
        expected = {later % 8 for later in future_of(steps, t, world)} or {place // N}
        assert set(found) == expected, (t, world)


def test_no_step_is_looked_for_beyond_the_longest_episode():
    buffer = filled(8, longest=5)
    assert buffer._num_later(torch.tensor([0])).tolist() == [5]


@pytest.mark.parametrize("shards", [1, 2])
def test_later_steps_are_equally_likely(shards):
    """Chi-square of the goals of relabelled samples against the exact distribution over steps and futures."""
    buffer, steps = filled(14, share=1.0, shards=shards), scene(14)
    expected = torch.zeros(15 * 10, dtype=torch.float64)
    places = places_of(buffer, 14)
    for t, world in places:
        times = future_of(steps, t, world)
        for later in times:
            expected[10 * (later + 1) + world] += 1.0 / len(times) / len(places)
    goals, valid = [], []
    for _ in range(50):
        sample = buffer.sample(1200)
        goals.append(sample["obs.critic"][:, 1].round().long())
        valid.append(sample["valid"])
    counts = torch.bincount(torch.cat(goals)[torch.cat(valid)], minlength=150).double()
    possible = expected > 0
    assert counts[~possible].sum() == 0
    share = expected[possible] / expected[possible].sum()
    assert stats.chisquare(counts[possible].numpy(), (share * counts.sum()).numpy()).pvalue > 1e-3


@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_tasks_own_goal_gives_the_stored_step_bit_for_bit(n_step, dtype):
    buffer = filled(14, n_step=n_step, gamma=GAMMA, dtype=dtype)
    index = torch.arange(8 * N)
    plain = buffer.steps_at(index)
    relabelled = buffer.relabelled(index, buffer._goal(index))
    assert plain.keys() == relabelled.keys()
    for name, value in plain.items():
        assert torch.equal(value, relabelled[name]), name


@pytest.mark.parametrize("n_step", [1, 4])
def test_a_relabelled_step_is_what_the_task_would_have_given(n_step):
    """Against steps that were made with the other goal; the task's own change of goal stays."""
    buffer, steps = filled(14, n_step=n_step, gamma=GAMMA), scene(14)
    places = places_of(buffer, 14)
    new = torch.tensor([10.0 * 9 + world for _, world in places])  # where each world is at time 9
    sample = buffer.relabelled(torch.tensor(list(places.values())), new[:, None])
    for i, (t, world) in enumerate(places):
        first = steps[t]
        if not first["valid"][world]:
            continue
        own = first["obs.critic"][world, 1]
        total, last = 0.0, t
        for k, later in enumerate(future_of(steps, t, world)[:n_step]):
            last, goal = later, steps[later]["obs.critic"][world, 1]
            made = step(later, torch.full((N,), float(new[i] if goal == own else goal)))
            total += GAMMA**k * float(made["reward"][world])
        assert sample["reward"][i] == pytest.approx(total, abs=1e-5), (t, world)
        assert sample["num_steps"][i] == last - t + 1
        own_next = steps[last]["next.critic"][world, 1]
        next_goal = float(new[i] if own_next == own else own_next)
        for moment, when, goal in (("obs", t, float(new[i])), ("next", last + 1, next_goal)):
            for group, value in observed(when, torch.full((N,), goal)).items():
                torch.testing.assert_close(sample[f"{moment}.{group}"][i], value[world])


def test_a_goal_that_is_reached_later_earns_the_reward_of_being_there():
    """At the step that reaches it, and nowhere else: a place is a number that is met once."""
    buffer = filled(8, share=1.0)
    sample = buffer.sample(2000)
    valid = sample["valid"]
    is_there = sample["next.critic"][:, 2] == sample["obs.critic"][:, 1]
    assert is_there[valid].any()
    assert (sample["reward"][valid & is_there] >= 3.0).all()  # near 1, there 2
    assert (sample["reward"][valid & ~is_there] < 1.0).all()


def test_the_weights_of_the_reward_are_those_of_the_step():
    """A curriculum that changes them later does not change what a step was rewarded for."""
    buffer = make()
    buffer.weights.fill_(4.0)
    buffer.add(step(0, FIRST, weight=4.0))
    buffer.weights.fill_(1.0)
    buffer.add(step(1, FIRST))
    sample = buffer.relabelled(torch.arange(2 * N), 12.0 + torch.arange(N).repeat(2)[:, None])
    new = 12.0 + torch.arange(N)
    expected = (step(0, new, weight=4.0)["reward"], step(1, new)["reward"])
    torch.testing.assert_close(sample["reward"], torch.cat(expected))


@pytest.mark.parametrize(("share", "shards"), [(0.8, 1), (0.8, 2), (0.0, 1), (1.0, 2)])
def test_the_share_is_exact_in_each_shard(share, shards):
    sample = filled(8, share=share, shards=shards).sample(40)
    relabelled = (sample["obs.critic"][:, 1] >= 10.0) | ~sample["valid"]
    plain = (sample["obs.critic"][:, 1] < 10.0) | ~sample["valid"]
    each = 40 // shards
    for shard in range(shards):
        own = slice(shard * each, (shard + 1) * each)
        assert relabelled[own][: round(share * each)].all()
        assert plain[own][round(share * each) :].all()


def test_two_shards_sample_what_two_buffers_with_one_each_sample():
    whole = filled(14, shards=2)
    halves = [make(4 * N, num_worlds=N // 2, first_shard=shard) for shard in range(2)]
    for added in scene(14):
        for shard, half in enumerate(halves):
            half.add({name: value[shard * N // 2 : (shard + 1) * N // 2] for name, value in added.items()})
    together, apart = whole.sample(20), [half.sample(10) for half in halves]
    for name in together.keys():  # noqa: SIM118 - of a TensorDict
        assert torch.equal(together[name], torch.cat([half[name] for half in apart])), name


@pytest.mark.parametrize("num_added", [0, 3, 7, 10, 14])
def test_it_continues_bit_for_bit(num_added):
    """In the middle of episodes and right after their ends."""
    steps, one, other = scene(20), filled(num_added), make()
    other.load_state_dict({name: value.clone() for name, value in one.state_dict().items()})
    other._random.load_state_dict(one._random.state_dict())
    for buffer in (one, other):
        for added in steps[num_added : num_added + 4]:
            buffer.add(added)
    ours, theirs = one.sample(100), other.sample(100)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())
