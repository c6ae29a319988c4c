"""Our Humanoid against Gymnasium's Humanoid-v5, step by step, from the same states under the same actions."""

import gymnasium
import mujoco
import numpy as np
import pytest
import torch
from gymnasium.envs.mujoco.humanoid_v5 import HumanoidEnv

from envs_gpu.make import make_env

CPU = torch.device("cpu")
# float32 outputs of float64 physics: what Gymnasium reports is rounded by up to half of this.
ROUNDING = 2e-6


class HumanoidReadAtTheEnd(HumanoidEnv):
    """Gymnasium's Humanoid, with everything that it reads evaluated at the state that it returns.

    As shipped, all but qpos and qvel is left over from the last Runge-Kutta stage. The model's solver, PGS,
    stops before it has converged, and where it stops depends on the guess that it starts from, in the sixth
    digit of a force: both sides start from none.
    """

    def _step_mujoco_simulation(self, ctrl, n_frames):
        self.data.ctrl[:] = ctrl
        self.data.qacc_warmstart[:] = 0
        mujoco.mj_step(self.model, self.data, nstep=n_frames)
        self.data.qacc_warmstart[:] = 0
        mujoco.mj_forward(self.model, self.data)
        mujoco.mj_rnePostConstraint(self.model, self.data)


@pytest.fixture
def env():
    env = make_env("humanoid", num_envs=2, device=CPU, seed=1)
    yield env
    env.close()


def put(env, qpos, qvel):
    """Continue every world of `env` from Gymnasium's state."""
    everyone = torch.ones(env.num_envs, dtype=torch.bool)
    env.place(everyone, *(torch.tensor(x).expand(env.num_envs, -1) for x in (qpos, qvel)))


def num_self_contacts(data):
    return int((data.contact.geom > 0).all(axis=1).sum())


@pytest.mark.parametrize("action_scale", [1.0, 0.3])
def test_every_step_is_gymnasiums(env, action_scale):
    reference, rng = HumanoidReadAtTheEnd(), np.random.default_rng(0)
    reference.reset(seed=0)
    num_terminated = num_touching = 0
    for _ in range(400):
        put(env, reference.data.qpos, reference.data.qvel)
        action = (action_scale * rng.uniform(-0.4, 0.4, 17)).astype(np.float32)
        observation, reward, terminated, _, _ = reference.step(action.astype(np.float64))
        ours = env.step(torch.tensor(action).expand(2, -1))
        seen = ours.final_obs["policy"][1]
        np.testing.assert_allclose(seen, observation, rtol=ROUNDING, atol=ROUNDING)
        assert ours.reward[1].item() == pytest.approx(reward, rel=ROUNDING, abs=ROUNDING)
        assert ours.terminated[1].item() == terminated
        num_terminated += terminated
        num_touching += num_self_contacts(reference.data) > 0
        if terminated:
            reference.reset()
    assert num_terminated > 0
    assert num_touching > 10  # the forces between limbs were put to the test


def test_trajectory_and_return_are_those_of_gymnasium_as_shipped(env):
    """What the stale reading touches is derived quantities and the split of the reward over steps."""
    reference = gymnasium.make("Humanoid-v5", disable_env_checker=True).unwrapped
    rng, state = np.random.default_rng(1), slice(45)
    reference.reset(seed=0)
    ours_total = gymnasium_total = 0.0
    for _ in range(300):
        put(env, reference.data.qpos, reference.data.qvel)
        action = rng.uniform(-0.4, 0.4, 17).astype(np.float32)
        observation, reward, terminated, _, info = reference.step(action.astype(np.float64))
        ours = env.step(torch.tensor(action).expand(2, -1))
        seen = ours.final_obs["policy"][1, state]
        np.testing.assert_allclose(seen, observation[state], rtol=ROUNDING, atol=ROUNDING)
        assert ours.terminated[1].item() == terminated
        assert ours.metrics["reward/healthy"][1].item() == pytest.approx(info["reward_survive"])
        assert ours.metrics["reward/control"][1].item() == pytest.approx(info["reward_ctrl"], abs=ROUNDING)
        ours_total += ours.reward[1].item()
        gymnasium_total += reward
        if terminated:
            reference.reset()
    assert ours_total == pytest.approx(gymnasium_total, rel=0.01)


def test_start_is_gymnasiums(env):
    """The first observation of an episode: motors rest, and no contact forces are known yet."""
    reference = gymnasium.make("Humanoid-v5", disable_env_checker=True).unwrapped
    observation, _ = reference.reset(seed=0)
    put(env, reference.data.qpos, reference.data.qvel)
    env._episode_step.zero_()
    fresh = env.task.observe(env.physics.state, env._episode())["policy"][0]
    np.testing.assert_allclose(fresh, observation, rtol=ROUNDING, atol=ROUNDING)


def test_start_is_distributed_as_in_gymnasium():
    env = make_env("humanoid", num_envs=2048, device=CPU, seed=0)
    qpos, qvel = env.physics.state.qpos - env.task.initial_qpos, env.physics.state.qvel
    for noise in (qpos, qvel):
        assert noise.abs().max() < 0.01
        assert noise.mean().item() == pytest.approx(0.0, abs=5 * 0.02 / 12**0.5 / noise.numel() ** 0.5)
        assert noise.var().item() == pytest.approx(0.02**2 / 12, rel=0.03)
    env.close()


def test_clock_is_gymnasiums(env):
    assert env.spec.max_episode_steps == gymnasium.spec("Humanoid-v5").max_episode_steps
    assert env.task.control_dt == pytest.approx(0.015)
    assert env.spec.obs_dims == {"policy": 348}
