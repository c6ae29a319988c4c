"""Our Ant against Gymnasium's Ant-v5, step by step, from the same states under the same actions."""

import gymnasium
import mujoco
import numpy as np
import pytest
import torch
from gymnasium.envs.mujoco.ant_v5 import AntEnv

from envs_gpu.make import make_env

CPU = torch.device("cpu")
# float32 outputs of float64 physics: what Gymnasium reports is rounded by up to half of this.
ROUNDING = 2e-6
NUM_POSITIONS_AND_VELOCITIES = 27


class AntReadAtTheEnd(AntEnv):
    """Gymnasium's Ant, with everything that it reads evaluated at the state that it returns.

    As shipped, `xpos` and `cfrc_ext` are left over from the last Runge-Kutta stage.
    """

    def _step_mujoco_simulation(self, ctrl, n_frames):
        self.data.ctrl[:] = ctrl
        mujoco.mj_step(self.model, self.data, nstep=n_frames)
        mujoco.mj_forward(self.model, self.data)
        mujoco.mj_rnePostConstraint(self.model, self.data)


@pytest.fixture
def env():
    env = make_env("ant", num_envs=3, device=CPU, seed=1)
    yield env
    env.close()


def put(env, qpos, qvel):
    """Continue every world of `env` from Gymnasium's state."""
    everyone = torch.ones(env.num_envs, dtype=torch.bool)
    env.place(everyone, *(torch.tensor(x).expand(env.num_envs, -1) for x in (qpos, qvel)))


def gymnasium_steps(env, reference, num_steps, action_scale=1.0):
    """Yield (ours, observation, reward, terminated, info), both sides starting every step from one state."""
    rng = np.random.default_rng(0)
    reference.reset(seed=0)
    for _ in range(num_steps):
        put(env, reference.data.qpos, reference.data.qvel)
        action = (action_scale * rng.uniform(-1, 1, 8)).astype(np.float32)
        observation, reward, terminated, _, info = reference.step(action.astype(np.float64))
        yield env.step(torch.tensor(action).expand(3, -1)), observation, reward, terminated, info
        if terminated:
            reference.reset()


@pytest.mark.parametrize("action_scale", [1.0, 0.2])
def test_every_step_is_gymnasiums(env, action_scale):
    terminations = []
    steps = gymnasium_steps(env, AntReadAtTheEnd(), 600, action_scale)
    for ours, observation, reward, terminated, _ in steps:
        np.testing.assert_allclose(ours.final_obs["policy"][1], observation, rtol=ROUNDING, atol=ROUNDING)
        assert ours.reward[1].item() == pytest.approx(reward, abs=ROUNDING)
        assert ours.terminated[1].item() == terminated
        terminations.append(terminated)
    assert any(terminations) == (action_scale == 1.0)  # small actions keep the ant on its feet


def test_trajectory_and_return_are_those_of_gymnasium_as_shipped(env):
    """What the stale reading touches is the split of the reward over steps, not the state or the sum."""
    ours_total = gymnasium_total = 0.0
    reference = gymnasium.make("Ant-v5", disable_env_checker=True).unwrapped
    for ours, observation, reward, terminated, info in gymnasium_steps(env, reference, 600):
        state = slice(NUM_POSITIONS_AND_VELOCITIES)
        seen, expected = ours.final_obs["policy"][1, state], observation[state]
        np.testing.assert_allclose(seen, expected, rtol=ROUNDING, atol=ROUNDING)
        assert ours.terminated[1].item() == terminated
        assert ours.metrics["reward/healthy"][1].item() == pytest.approx(info["reward_survive"])
        assert ours.metrics["reward/control"][1].item() == pytest.approx(info["reward_ctrl"], abs=ROUNDING)
        ours_total += ours.reward[1].item()
        gymnasium_total += reward
    assert ours_total == pytest.approx(gymnasium_total, rel=0.01)


def test_free_running_episode_stays_with_gymnasium(env):
    """50 steps without correction: what the solver's warm start changes stays tiny."""
    reference, rng = AntReadAtTheEnd(), np.random.default_rng(1)
    reference.reset(seed=3)
    put(env, reference.data.qpos, reference.data.qvel)
    for _ in range(50):
        action = (0.3 * rng.uniform(-1, 1, 8)).astype(np.float32)
        reference.step(action.astype(np.float64))
        env.step(torch.tensor(action).expand(3, -1))
    np.testing.assert_allclose(env.physics.state.qpos[1], reference.data.qpos, atol=1e-6)


def test_start_is_distributed_as_in_gymnasium():
    env = make_env("ant", num_envs=4096, device=CPU, seed=0)
    qpos, qvel = env.physics.state.qpos - env.task._initial_qpos, env.physics.state.qvel
    assert qpos.abs().max() < 0.1
    # Bounds are five standard errors of 61,440 uniform and 57,344 normal numbers.
    assert qpos.mean().item() == pytest.approx(0.0, abs=5 * 0.2 / 12**0.5 / 61440**0.5)
    assert qpos.var().item() == pytest.approx(0.2**2 / 12, rel=0.03)
    assert qvel.mean().item() == pytest.approx(0.0, abs=5 * 0.1 / 57344**0.5)
    assert qvel.std().item() == pytest.approx(0.1, rel=0.02)
    env.close()


def test_fresh_episode_observes_no_contact_forces(env):
    assert (env.reset(5)["policy"][:, NUM_POSITIONS_AND_VELOCITIES:] == 0).all()
