"""What every task keeps, run over the registry."""

import gc
import weakref

import pytest
import torch
from torchrl.envs.utils import check_env_specs

from envs_gpu.draw import Draw
from envs_gpu.errors import EnvError
from envs_gpu.make import make_env
from envs_gpu.randomize import Delay, Randomization
from envs_gpu.tasks import TASKS
from envs_gpu.torchrl_env import TorchRLEnv

CPU = torch.device("cpu")
every_task = pytest.mark.parametrize("task", TASKS.names())


def actions(env, num_steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(num_steps, env.num_envs, env.spec.action_dim, generator=generator) - 1


def play(env, action_sequence):
    """Everything that the steps gave, stacked `[T, N, ...]`."""
    results = [env.step(action) for action in action_sequence]
    return {
        "obs": torch.stack([result.obs["policy"] for result in results]),
        "final_obs": torch.stack([result.final_obs["policy"] for result in results]),
        "reward": torch.stack([result.reward for result in results]),
        "terminated": torch.stack([result.terminated for result in results]),
        "truncated": torch.stack([result.truncated for result in results]),
    }


def assert_same(one, other):
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@every_task
def test_shapes_and_dtypes(task):
    env = make_env(task, num_envs=5, device=CPU)
    result = env.step(actions(env, 1)[0])
    for obs in (env.obs, result.obs, result.final_obs):
        assert {group: tuple(value.shape) for group, value in obs.items()} == {
            group: (5, width) for group, width in env.spec.obs_dims.items()
        }
        assert all(value.dtype == torch.float32 for value in obs.values())
    assert (result.reward.shape, result.reward.dtype) == ((5,), torch.float32)
    for flag in (result.terminated, result.truncated):
        assert (flag.shape, flag.dtype) == ((5,), torch.bool)
    assert len(env.spec.joint_names) == env.spec.action_dim


@every_task
def test_the_memory_of_a_closed_env_is_free_at_once(task):
    """Nothing waits until Python looks for reference cycles, which it seldom does beside tensors."""
    gc.disable()
    try:
        env = make_env(task, num_envs=2, device=CPU)
        env.step(actions(env, 1)[0])
        kept = [weakref.ref(value) for value in (env, env.physics, env.compiled_model)]
        env.close()
        del env
        assert not any(value() for value in kept)
    finally:
        gc.enable()


@pytest.mark.slow
def test_the_memory_of_a_closed_compiled_env_is_found():
    """It is in a cycle of torch's records of tracing, and nothing else holds it."""
    moved = Randomization(friction=Draw(low=0.7, high=1.2), action_delay=Delay(high=2))
    env = make_env("go1_velocity", num_envs=2, device=CPU, compiled=True, randomization=moved)
    env.step(actions(env, 1)[0])
    kept = [weakref.ref(value) for value in (env, env.physics, env.compiled_model)]
    env.close()
    del env
    gc.collect()
    assert not any(value() for value in kept)


@every_task
def test_same_seed_same_trajectory(task):
    played = []
    for _ in range(2):
        env = make_env(task, num_envs=4, device=CPU, seed=7)
        played.append(play(env, actions(env, 60)))
        env.reset(7)
        played.append(play(env, actions(env, 60)))
    for other in played[1:]:
        assert_same(played[0], other)


@every_task
def test_other_seed_other_start(task):
    env = make_env(task, num_envs=4, device=CPU, seed=7)
    assert not torch.equal(env.obs["policy"].clone(), env.reset(8)["policy"])


@every_task
def test_a_world_does_not_see_its_neighbours(task):
    alone, crowd = (make_env(task, num_envs=n, device=CPU, seed=3) for n in (1, 9))
    moves = actions(crowd, 80)
    ours, theirs = play(alone, moves[:, :1]), play(crowd, moves)
    assert_same(ours, {name: value[:, :1] for name, value in theirs.items()})


@every_task
def test_continues_bit_for_bit(task):
    env = make_env(task, num_envs=4, device=CPU, seed=2)
    moves = actions(env, 90)
    play(env, moves[:45])
    saved = {name: value.clone() for name, value in env.state_dict().items()}
    expected = play(env, moves[45:])
    other = make_env(task, num_envs=4, device=CPU, seed=99)
    other.load_state_dict(saved)
    assert_same(expected, play(other, moves[45:]))


@every_task
def test_copied_worlds_stay_equal_under_equal_actions(task):
    """Bit for bit, over resets too; and a copy goes on like its source would have."""
    env = make_env(task, num_envs=6, device=CPU, seed=5)
    play(env, actions(env, 20))
    moves = actions(env, 60, seed=1)
    moves[:, [1, 4]] = moves[:, [2, 2]]  # of worlds that will be copies of world 2
    saved = env.state_dict()
    alone = play(env, moves)
    env.load_state_dict(saved)
    source = torch.tensor([0, 2, 2, 3, 2, 3])
    env.copy_worlds(source)
    for group, value in env.obs.items():
        assert torch.equal(value, saved[f"obs.{group}"][source])
    copied = play(env, moves)
    for name, value in copied.items():
        assert torch.equal(value[:, 1], value[:, 2]), name
        assert torch.equal(value[:, 4], value[:, 2]), name
        assert torch.equal(value[:, [0, 2, 3]], alone[name][:, [0, 2, 3]]), name
    positions = env.positions()
    assert not torch.equal(positions[5], positions[3])  # other actions


def test_copies_share_randomization_history_and_parameters():
    """Two worlds with other masses, delays and noise are one after the copy."""
    randomization = Randomization(
        observation_noise=Draw(low=-0.1, high=0.1), mass=Draw(low=0.5, high=2.0), action_delay=Delay(0, 3)
    )
    env = make_env("go1_velocity", num_envs=4, device=CPU, randomization=randomization, observation_history=3)
    play(env, actions(env, 5))
    env.set_parameters(torch.tensor([False, True, False, False]), {"alive_weight": 3.0})
    env.copy_worlds(torch.tensor([1, 1, 2, 1]))
    moves = actions(env, 20)
    moves[:, [0, 3]] = moves[:, [1, 1]]
    played = play(env, moves)
    for name, value in played.items():
        assert torch.equal(value[:, 0], value[:, 1]), name
        assert torch.equal(value[:, 3], value[:, 1]), name


@pytest.mark.parametrize("backend", ["warp", pytest.param("mjx", marks=pytest.mark.slow)])
def test_other_backends_copy_worlds_too(backend):
    env = make_env("cartpole_swingup", backend=backend, num_envs=4, device=CPU)
    play(env, actions(env, 5))
    env.copy_worlds(torch.tensor([1, 1, 1, 1]))
    moves = actions(env, 20)[:, :1].expand(-1, 4, -1)
    for name, value in play(env, moves).items():
        assert torch.equal(value, value[:, :1].expand_as(value)), name


@every_task
def test_final_obs_is_the_state_before_the_reset(task):
    """At the time limit every world is reset: `obs` is a fresh start, `final_obs` is not."""
    env = make_env(task, num_envs=3, device=CPU)
    still = torch.zeros(3, env.spec.action_dim)
    env._episode_step.fill_(env.spec.max_episode_steps - 1)
    before = env.state_dict()
    result = env.step(still)
    assert (result.truncated | result.terminated).all()
    assert not torch.equal(result.obs["policy"], result.final_obs["policy"])
    assert (env._episode_step == 0).all()
    env.load_state_dict(before)
    env._episode_step.fill_(1)
    assert torch.equal(env.step(still).final_obs["policy"], result.final_obs["policy"])


def test_terminated_is_not_truncated():
    env = make_env("ant", num_envs=3, device=CPU)
    qpos = env.physics.state.qpos.clone()
    qpos[0, 2] = 5.0  # far above the healthy height
    env.physics.set_state(torch.tensor([True, False, False]), qpos, env.physics.state.qvel.clone())
    env._episode_step[0] = env._episode_step[1] = env.spec.max_episode_steps - 1
    result = env.step(torch.zeros(3, 8))
    assert result.terminated.tolist() == [True, False, False]
    assert result.truncated.tolist() == [False, True, False]


@every_task
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_broken_world_ends_alone(task, poison):
    """It is reset and counted, nothing of it reaches the learner, and its neighbours keep every bit."""
    env, healthy = (make_env(task, num_envs=3, device=CPU, seed=4) for _ in range(2))
    env.pop_metrics()
    env.physics.state.qvel[1] = poison
    moves = actions(env, 20)
    broken = env.step(moves[0])
    assert broken.terminated.tolist()[1]
    assert all(value.isfinite().all() for value in (*broken.obs.values(), *broken.final_obs.values()))
    assert broken.reward[1] == 0
    healthy.step(moves[0])
    ours, theirs = play(env, moves[1:]), play(healthy, moves[1:])
    others = [0, 2]
    assert_same(*({name: value[:, others] for name, value in x.items()} for x in (ours, theirs)))
    assert all(ours[name].isfinite().all() for name in ("obs", "final_obs", "reward"))
    assert env.pop_metrics()["physics/broken"] == pytest.approx(1 / 60)


@every_task
def test_actions_are_clipped(task):
    env = make_env(task, num_envs=2, device=CPU)
    saved = env.state_dict()
    most = env.task.action_high.expand(3, 2, -1)
    huge = play(env, 100 * most)
    env.load_state_dict(saved)
    assert_same(huge, play(env, most))


@every_task
def test_metrics_are_means_over_what_happened(task):
    env = make_env(task, num_envs=6, device=CPU)
    env.pop_metrics()
    played = play(env, actions(env, 120))
    metrics = env.pop_metrics()
    terms = sum(value for name, value in metrics.items() if name.startswith("reward/"))
    assert terms == pytest.approx(played["reward"].mean().item(), rel=1e-4, abs=1e-5)
    done = played["terminated"] | played["truncated"]
    assert metrics["episode/count"] == done.sum().item()
    assert env.pop_metrics() == {}


COMPILED_IN_EVERY_RUN = {"cartpole_balance"}
"""Compiling takes 6 to 22 s a task; the others are slow tests."""


@pytest.mark.parametrize(
    "task",
    [
        name if name in COMPILED_IN_EVERY_RUN else pytest.param(name, marks=pytest.mark.slow)
        for name in TASKS.names()
    ],
)
def test_compiled_equals_eager(task):
    eager, compiled = (make_env(task, num_envs=4, device=CPU, compiled=flag) for flag in (False, True))
    moves = actions(eager, 20)
    ours, theirs = play(eager, moves), play(compiled, moves)
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-5, atol=1e-5)


def test_compiled_code_takes_any_action():
    """It does not ask for the dtype and the layout again."""
    eager, compiled = (
        make_env("cartpole_balance", num_envs=4, device=CPU, compiled=flag) for flag in (False, True)
    )
    for action in (
        torch.full((4, 1), 0.3),
        torch.full((4, 1), 0.3).double(),
        torch.tensor([[0.3]]).expand(4, 1),
    ):
        ours, theirs = eager.step(action), compiled.step(action)
        torch.testing.assert_close(ours.reward, theirs.reward)


class Forgetful(TASKS.get("cartpole_balance")):
    """Its memory is one tensor under two names at first, and for one of them of another dtype later."""

    later = torch.float32

    def begin(self, state, episode):
        zero = torch.zeros(len(state.qpos))
        return {"first": zero, "second": zero}

    def remember(self, state, episode, action):
        memory = episode.memory
        return {"first": memory["first"] + 1, "second": (memory["second"] + 100).to(self.later)}


@pytest.fixture
def forgetful(monkeypatch):
    monkeypatch.setitem(TASKS._entries, "forgetful", Forgetful)
    return Forgetful


def test_memory_is_one_tensor_a_name(forgetful):
    env = make_env("forgetful", num_envs=2, device=CPU, compiled=True)
    for _ in range(3):
        env.step(torch.zeros(2, 1))
    assert env._memory["first"].tolist() == [3, 3]
    assert env._memory["second"].tolist() == [300, 300]


def test_memory_of_another_dtype_is_named(forgetful, monkeypatch):
    monkeypatch.setattr(forgetful, "later", torch.float64)
    with pytest.raises(EnvError, match=r"memory 'second' is .* after begin and .*float64 after remember"):
        make_env("forgetful", num_envs=2, device=CPU, compiled=True)


@every_task
def test_torchrl_accepts_it(task):
    env = TorchRLEnv(make_env(task, num_envs=4, device=CPU))
    check_env_specs(env)


def test_torchrl_sees_true_last_observations():
    """A TorchRL rollout over resets equals our own steps, `next` holding the observation before the reset."""
    ours, wrapped = (make_env("ant", num_envs=4, device=CPU, seed=5) for _ in range(2))
    moves = actions(ours, 200)
    played = play(ours, moves)
    steps = iter(moves)
    rollout = TorchRLEnv(wrapped).rollout(
        200, lambda td: td.set("action", next(steps)), break_when_any_done=False, auto_reset=True
    )
    assert (played["terminated"]).any()
    assert torch.equal(rollout["next", "policy"].transpose(0, 1), played["final_obs"])
    assert torch.equal(rollout["policy"][:, 1:].transpose(0, 1), played["obs"][:-1])
    assert torch.equal(rollout["next", "reward"].squeeze(-1).T, played["reward"])
