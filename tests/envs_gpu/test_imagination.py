"""Imagined steps are judged like simulated ones, and tasks that cannot be imagined are refused."""

import pytest
import torch

from envs_gpu.errors import EnvError
from envs_gpu.imagination import PHYSICS
from envs_gpu.make import make_env
from tests.envs import record_results

CPU = torch.device("cpu")
ACCEPTED = (
    "cartpole_balance",
    "cartpole_swingup",
    "half_cheetah",
    "hopper",
    "swimmer",
    "walker2d",
)


def make(name, **options):
    return make_env(name, backend="mujoco", num_envs=8, device=CPU, seed=3, **options)


@pytest.mark.parametrize("name", ACCEPTED)
def test_the_simulators_own_states_are_judged_alike(name):
    """Reward, termination and observation of real steps, to float32, over ends of episodes."""
    env = make(name, episode_length_s=0.5)
    imagination, terminated = env.imagination(), 0
    results = record_results(env)
    random = torch.Generator().manual_seed(0)
    rows = [env.obs[PHYSICS].clone()]
    actions = []
    for _ in range(60):
        actions.append(2.4 * torch.rand(8, env.spec.action_dim, generator=random) - 1.2)
        rows.append(env.step(actions[-1]).obs[PHYSICS].clone())
    for before, action, result in zip(rows, actions, results, strict=False):
        after = imagination.unpack(result.final_obs[PHYSICS])
        nothing = torch.zeros(8, dtype=torch.int64)
        clipped = action.clamp(env.task.action_low, env.task.action_high)
        judged = imagination.judge(imagination.unpack(before), clipped, after.qpos, after.qvel, nothing)
        torch.testing.assert_close(judged.reward, result.reward, rtol=1e-4, atol=1e-4)
        assert torch.equal(judged.terminated, result.terminated)
        for ours, theirs in zip(judged.after.memory.values(), after.memory.values(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
        assert torch.equal(judged.after.step, after.step)
        observed = imagination.observe(judged.after, nothing)["policy"]
        torch.testing.assert_close(observed, result.final_obs["policy"], rtol=1e-5, atol=1e-5)
        terminated += int(result.terminated.sum())
    assert terminated or name not in ("hopper", "walker2d")
    env.close()


def test_task_parameters_are_those_of_the_world():
    """A parameter that differs from world to world counts in imagination as it did in the step."""
    env = make("half_cheetah")
    imagination = env.imagination()
    env.set_parameters(None, {"control_cost_weight": torch.arange(8.0)})
    action = torch.ones(8, env.spec.action_dim)
    env.step(action)
    before = env.obs[PHYSICS].clone()
    result = env.step(action)
    after = imagination.unpack(result.final_obs[PHYSICS])
    nothing = torch.zeros(8, dtype=torch.int64)
    judged = imagination.judge(imagination.unpack(before), action, after.qpos, after.qvel, nothing)
    torch.testing.assert_close(judged.reward, result.reward, rtol=1e-4, atol=1e-4)
    assert judged.reward.max() - judged.reward.min() > 30.0
    env.close()


def test_a_state_is_continued_after_a_checkpoint():
    """The rows are part of the observation, so a loaded env goes on with the same ones."""
    env, other = make("hopper"), make("hopper")
    env.imagination(), other.imagination()
    env.step(torch.zeros(8, env.spec.action_dim))
    other.load_state_dict(env.state_dict())
    assert torch.equal(other.obs[PHYSICS], env.obs[PHYSICS])
    env.close(), other.close()


@pytest.mark.parametrize("name", ["ant", "reacher", "humanoid"])
def test_a_task_that_reads_sensors_is_refused(name):
    env = make(name)
    with pytest.raises(EnvError, match="reads sensors"):
        env.imagination()
    env.close()


def test_a_task_without_gradients_is_refused():
    """The inverted pendulum is rewarded for being upright, yes or no."""
    env = make("inverted_pendulum")
    with pytest.raises(EnvError, match="reward of the task cannot be differentiated"):
        env.imagination()
    env.close()
