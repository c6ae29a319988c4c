"""Env families written elsewhere keep our contract, and step as their own code steps them."""

import gymnasium
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
import torch
from flax import struct

from envs_gpu import bridge
from envs_gpu.errors import BrokenWorldsError, EnvError
from envs_gpu.make import make_env
from envs_gpu.registry import UnknownNameError
from envs_gpu.vec_env import EnvSpec
from envs_gpu.zoo import FAMILIES, find
from envs_gpu.zoo._jax_env import JaxEnv
from envs_gpu.zoo.isaaclab import IsaacLabEnv
from pi_incubator.cli import train as train_cli
from pi_incubator.config import ConfigError

CPU = torch.device("cpu")
MAX_STEPS = 12
REAL = [
    pytest.param("brax/ant", marks=pytest.mark.slow),
    pytest.param("playground/CartpoleBalance", marks=pytest.mark.slow),
    "gymnasium/Hopper-v5",
    "gymnasium/Pendulum-v1",
]


@struct.dataclass
class WalkState:
    obs: jax.Array
    reward: jax.Array
    done: jax.Array
    metrics: dict
    start: jax.Array


class Walk:
    """A point on a line, starts at random, is done beyond 1; with the interface of brax and Playground.

    As theirs do, its reset gives other types than its step: a weak float, and an integer.
    """

    action_size = 1

    def reset(self, rng):
        start = jax.random.uniform(rng, (1,), minval=-0.5, maxval=0.5)
        return WalkState(start, jnp.asarray(0.0), jnp.asarray(0), {"reward_way": 0.0}, start)

    def step(self, state, action):
        obs = state.obs + 0.2 * action
        reward = obs[0]
        done = (obs[0] > 1).astype(float)
        return state.replace(obs=obs, reward=reward, done=done, metrics={"reward_way": reward})


def make_walk(num_envs=5, seed=3, first_world=0):
    spec = EnvSpec("toy/walk", num_envs, {}, 1, (-1.0,), (1.0,), ("x",), 10.0, MAX_STEPS, CPU)
    return JaxEnv(Walk(), spec, seed, first_world)


def make(name, num_envs=5, seed=3, first_world=0):
    if name == "walk":
        return make_walk(num_envs, seed, first_world)
    return make_env(name, num_envs=num_envs, device=CPU, seed=seed, first_world=first_world)


def actions(env, num_steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(num_steps, env.num_envs, env.spec.action_dim, generator=generator) - 1


def play(env, action_sequence):
    """Everything that the steps gave, stacked `[T, N, ...]`."""
    names = ("reward", "terminated", "truncated", "broken")
    rows = []
    for action in action_sequence:
        result = env.step(action)
        row = {name: getattr(result, name) for name in names}
        row |= {"obs": result.obs["policy"], "final_obs": result.final_obs["policy"]}
        rows.append({name: value.clone() for name, value in row.items()})
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def assert_same(one, other):
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


every_env = pytest.mark.parametrize("name", ["walk", *REAL])


@every_env
def test_same_seed_same_worlds_and_another_seed_others(name):
    env = make(name)
    moves = actions(env, 40)
    begun = env.obs["policy"].clone()
    first = play(env, moves)
    assert torch.equal(env.reset(3)["policy"], begun)
    assert_same(first, play(env, moves))
    assert not torch.equal(env.reset(4)["policy"], begun)


@every_env
def test_continues_bit_for_bit(name):
    env = make(name)
    moves = actions(env, 90)
    play(env, moves[:45])
    saved = env.state_dict()
    expected = play(env, moves[45:])
    other = make(name, seed=99)
    other.load_state_dict(saved)
    assert torch.equal(other.obs["policy"], saved["obs.policy"])
    assert_same(expected, play(other, moves[45:]))


@every_env
def test_a_world_is_itself_whatever_its_place(name):
    """To rounding: XLA orders sums as suits each number of worlds, and contacts make much of the last bit."""
    crowd, pair = make(name, num_envs=5), make(name, num_envs=2, first_world=3)
    moves = actions(crowd, 10)
    ours, theirs = play(pair, moves[:, 3:]), play(crowd, moves)
    torch.testing.assert_close(ours["obs"], theirs["obs"][:, 3:], rtol=1e-3, atol=1e-3)


@every_env
def test_only_the_worlds_that_are_done_start_anew_each_elsewhere(name):
    env = make(name, num_envs=8)
    num_steps = 2 * min(env.spec.max_episode_steps, 100)
    played = play(env, actions(env, num_steps))
    done = played["terminated"] | played["truncated"]
    kept = (played["obs"] == played["final_obs"]).all(-1)
    assert torch.equal(kept, ~done)
    if done.any():
        starts = played["obs"][done]
        assert len(starts.unique(dim=0)) == len(starts), "an episode began where another one did"


@pytest.mark.parametrize("name", ["walk", "gymnasium/Pendulum-v1"])
def test_the_clock_truncates_and_final_obs_is_the_last_observation(name):
    env = make(name)
    limit = env.spec.max_episode_steps
    still = torch.zeros(limit + 1, env.num_envs, env.spec.action_dim)
    played = play(env, still)
    assert not played["terminated"].any()
    assert played["truncated"].sum(0).tolist() == [1] * env.num_envs
    assert played["truncated"][limit - 1].all()
    assert env.pop_metrics()["episode/length"] == limit
    if name == "walk":
        assert torch.equal(played["final_obs"][limit - 1], played["obs"][0])  # it stood still
    assert not torch.equal(played["final_obs"][limit - 1], played["obs"][limit - 1])


def test_walk_terminates_beyond_one():
    env = make_walk()
    played = play(env, torch.ones(MAX_STEPS, env.num_envs, 1))
    assert torch.equal(played["terminated"], played["final_obs"][..., 0] > 1)
    assert not played["truncated"].any()
    assert (played["obs"][played["terminated"]] <= 0.5).all()
    torch.testing.assert_close(played["reward"], played["final_obs"][..., 0])
    assert env.pop_metrics()["reward/way"] == pytest.approx(played["reward"].mean().item(), abs=1e-6)


def test_a_broken_world_ends_alone():
    env, healthy = make_walk(), make_walk()
    obs = env._carry.state.obs.at[1].set(jnp.nan)
    env._carry = env._carry._replace(state=env._carry.state.replace(obs=obs))
    moves = actions(env, 10)
    ours, theirs = play(env, moves), play(healthy, moves)
    assert ours["terminated"][0].tolist()[1]
    assert ours["broken"].nonzero().tolist() == [[0, 1]]
    assert ours["reward"][0, 1] == 0
    assert all(value.isfinite().all() for value in ours.values())
    others = [0, 2, 3, 4]
    assert_same({k: v[:, others] for k, v in ours.items()}, {k: v[:, others] for k, v in theirs.items()})
    assert env.pop_metrics()["physics/broken"] == pytest.approx(1 / 50)


@pytest.mark.parametrize("maker", [make_walk, lambda: make("gymnasium/Hopper-v5", num_envs=5)])
@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_an_action_that_is_not_finite_breaks_its_world(maker, poison):
    env = maker()
    action = actions(env, 1)[0]
    action[3, 0] = poison
    assert env.step(action).broken.tolist() == [False, False, False, True, False]
    env.check()
    env.step(action * torch.nan)
    with pytest.raises(BrokenWorldsError, match=r"5 of 5 worlds .* their action"):
        env.check()


def test_jax_compiles_nothing_after_the_first_step_and_copies_nothing():
    compilations = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, duration, **_: compilations.append(event) if "backend_compile" in event else None
    )
    env = make_walk(num_envs=7)
    moves = actions(env, 30)
    env.step(moves[0])
    assert compilations, "the listener hears nothing"
    compilations.clear()
    bridge.stats.reset()
    play(env, moves)
    assert bridge.stats.copies == 0
    env.load_state_dict(env.state_dict())
    play(env, moves)
    env.reset(1)
    play(env, moves)
    assert compilations == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["brax/ant", "playground/CartpoleBalance"])
def test_a_step_is_the_familys_own(name):
    env = make(name, num_envs=4)
    theirs = jax.jit(jax.vmap(env.env.step))
    for action in actions(env, 50):
        expected = theirs(env._carry.state, jnp.asarray(action.numpy()))
        result = env.step(action)
        np.testing.assert_allclose(result.final_obs["policy"], expected.obs, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(result.reward, expected.reward, rtol=1e-5, atol=1e-5)
        assert result.terminated.tolist() == expected.done.astype(bool).tolist()


@pytest.mark.parametrize("name", ["Hopper-v5", "Ant-v5", "Pendulum-v1"])
def test_gymnasium_steps_as_gymnasium_make_does(name):
    env = make(f"gymnasium/{name}", num_envs=3, seed=11)
    world = gymnasium.make(name)
    seed = int(np.random.SeedSequence([11, 1]).generate_state(1)[0])
    expected, _ = world.reset(seed=seed)
    np.testing.assert_array_equal(env.obs["policy"][1], expected.astype(np.float32))
    num_episodes = 0
    for action in actions(env, 250):
        result = env.step(action)
        expected, reward, terminated, truncated, _ = world.step(action[1].numpy())
        np.testing.assert_array_equal(result.final_obs["policy"][1], expected.astype(np.float32))
        assert result.reward[1] == np.float32(reward)
        assert (bool(result.terminated[1]), bool(result.truncated[1])) == (terminated, truncated)
        if terminated or truncated:
            num_episodes += 1
            expected, _ = world.reset()
            np.testing.assert_array_equal(result.obs["policy"][1], expected.astype(np.float32))
    assert num_episodes


class FakeIsaacLab:
    """What Isaac Lab documents of an env: torch in and out, worlds reset inside the step."""

    num_envs, step_dt, max_episode_length = 3, 0.02, 4
    single_action_space = gymnasium.spaces.Box(-1, 1, (2,))

    def __init__(self):
        self.unwrapped = self
        self.obs = {"policy": torch.zeros(3, 1), "critic": torch.zeros(3, 2)}

    def reset(self, seed):
        self.obs["policy"].zero_()
        return self.obs, {}

    def step(self, action):
        self.obs["policy"] += action[:, :1]
        terminated = self.obs["policy"][:, 0] > 1.5
        self.obs["policy"][terminated] = 0.0
        return self.obs, torch.ones(3), terminated, torch.zeros(3, dtype=torch.bool), {}

    def close(self):
        pass


def test_isaac_lab_adapter_over_its_documented_interface():
    env = IsaacLabEnv("Isaac-Fake-v0", FakeIsaacLab(), CPU, seed=0)
    assert (env.spec.obs_dims, env.spec.control_hz) == ({"policy": 1, "critic": 2}, 50.0)
    move = torch.tensor([[9.0, 0], [0.5, 0], [0, 0]])
    first = env.step(move)
    assert first.obs["policy"].squeeze(-1).tolist() == [1.0, 0.5, 0.0]  # clipped
    second = env.step(move)
    assert second.terminated.tolist() == [True, False, False]
    assert second.obs["policy"].squeeze(-1).tolist() == [0.0, 1.0, 0.0]
    assert second.final_obs["policy"].squeeze(-1).tolist() == [1.0, 1.0, 0.0]  # one step old where done
    assert env.pop_metrics()["episode/length"] == 2


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("brax/antt", "brax/ant"),
        ("playground/CartpolBalance", "playground/CartpoleBalance"),
        ("brx/a", "brax"),
    ],
)
def test_unknown_names_suggest_the_nearest(name, suggestion):
    with pytest.raises(UnknownNameError) as caught:
        find(name)
    assert caught.value.suggestion == suggestion


def test_every_family_is_known():
    assert FAMILIES.names() == ["brax", "gymnasium", "isaaclab", "playground"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("env.name=isaaclab/Isaac-Ant-v0", "needs isaaclab and isaaclab_tasks, not installed here; install"),
        ("env.name=gymnasium/FrozenLake-v1", "observes Discrete"),
        ("env.name=gymnasium/Ant-v55", "did you mean 'gymnasium/Ant-v5'"),
    ],
)
def test_an_env_that_cannot_be_trained_is_one_line(tmp_path, override, message):
    config = tmp_path / "a.yaml"
    config.write_text(f"experiment: {{output_dir: {tmp_path}}}\ntracking: {{backend: none}}\n")
    with pytest.raises(ConfigError, match=message):
        train_cli.main(["--config", str(config), override])


def test_a_family_brings_its_own_physics(tmp_path):
    config = tmp_path / "a.yaml"
    config.write_text("env: {name: gymnasium/Ant-v5, backend: warp}")
    with pytest.raises(ConfigError, match=r"a.yaml:1: env.backend = 'warp': .* brings its own physics"):
        train_cli.main(["--config", str(config)])


def test_discrete_actions_are_numbers_of_choices():
    """Steps of CartPole and Acrobot are Gymnasium's own; an action that is not finite breaks its world."""
    for name, num_choices in (("CartPole-v1", 2), ("Acrobot-v1", 3)):
        env, reference = make(f"gymnasium/{name}", num_envs=2), gymnasium.make(name).unwrapped
        assert (env.spec.num_choices, env.spec.action_dim) == (num_choices, 1)
        assert (env.spec.action_low, env.spec.action_high) == ((0.0,), (num_choices - 1.0,))
        reference.reset()
        reference.state = np.array(env.worlds[1].unwrapped.state)
        for step in range(8):
            result = env.step(torch.tensor([[0.0], [float(step % num_choices)]]))
            observation, reward, ends, *_ = reference.step(step % num_choices)
            np.testing.assert_array_equal(
                result.final_obs["policy"][1].numpy(), observation.astype(np.float32)
            )
            assert (float(result.reward[1]), bool(result.terminated[1])) == (reward, ends)
        assert env.step(torch.tensor([[float("nan")], [1.0]])).broken.tolist() == [True, False]


def test_saved_worlds_with_discrete_actions_continue_bit_for_bit():
    env, other = (make("gymnasium/CartPole-v1", num_envs=3, seed=seed) for seed in (0, 9))
    moves = (torch.rand(120, 3, 1, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    play(env, moves[:60])
    other.load_state_dict(env.state_dict())
    assert_same(play(env, moves[60:]), play(other, moves[60:]))


@pytest.mark.parametrize("name", ["CartPole-v1", "Hopper-v5"])
def test_copied_worlds_of_gymnasium_stay_equal_under_equal_actions(name):
    """Also over resets, which both take from the same random numbers."""
    env = make(f"gymnasium/{name}", num_envs=4)
    moves = actions(env, 120) if env.spec.num_choices is None else (actions(env, 120) > 0).float()
    play(env, moves[:8])
    alone = env.state_dict()
    moves[:, [0, 3]] = moves[:, [2, 2]]
    env.copy_worlds(torch.tensor([2, 1, 2, 2]))
    copied = play(env, moves[8:])
    assert copied["terminated"][:, 2].any()
    for key, value in copied.items():
        assert torch.equal(value[:, 0], value[:, 2]), key
        assert torch.equal(value[:, 3], value[:, 2]), key
    env.load_state_dict(alone)
    for key, value in play(env, moves[8:]).items():
        assert torch.equal(value[:, [1, 2]], copied[key][:, [1, 2]]), key


def test_worlds_that_may_keep_more_than_numbers_cannot_be_copied():
    env = make("walk")
    assert not env.can_copy_worlds
    with pytest.raises(EnvError, match="the worlds of toy/walk cannot be copied"):
        env.copy_worlds(torch.arange(5))


@pytest.mark.parametrize(
    ("algorithm", "network"),
    [("td3", "mlp"), ("flash_sac", "flash"), ("crossq", "batch_norm")],
)
def test_algorithms_of_continuous_actions_refuse_discrete_ones(tmp_path, algorithm, network):
    """In one line that names those that learn them."""
    config = tmp_path / "a.yaml"
    config.write_text(
        f"experiment: {{output_dir: {tmp_path}}}\nenv: {{name: gymnasium/CartPole-v1, num_envs: 4}}\n"
        f"algorithm:\n  name: {algorithm}\nnetwork: {{name: {network}}}\n"
    )
    problem = f"a.yaml:4: algorithm.name = '{algorithm}': it learns continuous actions.*; set it to .*ppo"
    with pytest.raises(ConfigError, match=problem) as caught:
        train_cli.main(["--config", str(config)])
    assert len(str(caught.value).splitlines()) == 1


def test_gymnasium_keeps_mujocos_whole_state():
    """The next step reads body positions that the last one left behind, which `qpos` alone does not give."""
    env = make("gymnasium/Ant-v5", num_envs=2)
    play(env, actions(env, 10))
    data = env.worlds[0].unwrapped.data
    left_behind = data.xpos.copy()
    mujoco.mj_kinematics(env.worlds[0].unwrapped.model, data)
    assert not np.array_equal(left_behind, data.xpos)
    data.xpos[:] = left_behind
    assert np.array_equal(env.state_dict()["data.xpos"][0].numpy(), left_behind)
