"""Our tasks against Gymnasium's environments, step by step, from the same states under the same actions.

Ant has its own file, `test_ant.py`.
"""

import types

import gymnasium
import mujoco
import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp

from envs_gpu.make import make_env

CPU = torch.device("cpu")
# float32 outputs of float64 physics: what Gymnasium reports is rounded by up to half of this.
ROUNDING = 2e-6
IDS = {
    "half_cheetah": "HalfCheetah-v5",
    "hopper": "Hopper-v5",
    "inverted_double_pendulum": "InvertedDoublePendulum-v5",
    "inverted_pendulum": "InvertedPendulum-v5",
    "reacher": "Reacher-v5",
    "swimmer": "Swimmer-v5",
    "walker2d": "Walker2d-v5",
}
READS_DERIVED_QUANTITIES = {"reacher", "inverted_double_pendulum"}
NEVER_TERMINATES = {"half_cheetah", "reacher", "swimmer"}
every_task = pytest.mark.parametrize("task", IDS)


def make_reference(task):
    """Gymnasium's env as shipped, but for what it reads of derived quantities: that is brought up to date.

    As shipped, positions of bodies and constraint forces are left over from the last integrator stage.
    """
    env = gymnasium.make(IDS[task], disable_env_checker=True).unwrapped
    if task in READS_DERIVED_QUANTITIES:

        def step_and_evaluate(self, ctrl, n_frames):
            self.data.ctrl[:] = ctrl
            mujoco.mj_step(self.model, self.data, nstep=n_frames)
            mujoco.mj_forward(self.model, self.data)

        env._step_mujoco_simulation = types.MethodType(step_and_evaluate, env)
    return env


def put(env, qpos, qvel):
    """Continue every world of `env` from Gymnasium's state."""
    everyone = torch.ones(env.num_envs, dtype=torch.bool)
    env.place(everyone, *(torch.tensor(x).expand(env.num_envs, -1) for x in (qpos, qvel)))


@every_task
@pytest.mark.parametrize("action_scale", [1.0, 0.2])
def test_every_step_is_gymnasiums(task, action_scale):
    ours, reference = make_env(task, num_envs=2, device=CPU), make_reference(task)
    rng = np.random.default_rng(0)
    box = reference.action_space
    assert np.array_equal(box.low, ours.task.action_low)
    assert np.array_equal(box.high, ours.task.action_high)
    reference.reset(seed=0)
    num_terminated = 0
    for _ in range(400):
        put(ours, reference.data.qpos, reference.data.qvel)
        action = (action_scale * rng.uniform(box.low, box.high)).astype(np.float32)
        observation, reward, terminated, _, _ = reference.step(action.astype(np.float64))
        result = ours.step(torch.tensor(action).expand(2, -1))
        seen = result.final_obs["policy"][1]
        np.testing.assert_allclose(seen, observation, rtol=ROUNDING, atol=ROUNDING)
        assert result.reward[1].item() == pytest.approx(reward, rel=ROUNDING, abs=ROUNDING)
        assert result.terminated[1].item() == terminated
        num_terminated += terminated
        if terminated:
            reference.reset()
    assert (num_terminated == 0) == (task in NEVER_TERMINATES)


def test_double_pendulum_feels_both_ends_of_the_rail():
    ours = make_env("inverted_double_pendulum", num_envs=2, device=CPU)
    reference = make_reference("inverted_double_pendulum")
    for side in (-1.0, 1.0):
        reference.reset(seed=0)
        reference.set_state(np.array([side * 0.98, 0.0, 0.0]), np.array([side * 0.5, 0.0, 0.0]))
        put(ours, reference.data.qpos, reference.data.qvel)
        observation, *_ = reference.step(np.zeros(1))
        seen = ours.step(torch.zeros(2, 1)).final_obs["policy"][0]
        assert observation[-1] * side < 0
        np.testing.assert_allclose(seen, observation, rtol=ROUNDING, atol=ROUNDING)


@every_task
def test_start_is_distributed_as_in_gymnasium(task):
    """Every coordinate by the two-sample test of Kolmogorov and Smirnov, at one false alarm in 10,000."""
    ours, reference = make_env(task, num_envs=4096, device=CPU, seed=3), make_reference(task)
    starts = []
    for seed in range(1000):
        reference.reset(seed=seed)
        starts.append(np.concatenate((reference.data.qpos, reference.data.qvel)))
    theirs = np.array(starts)
    mine = torch.cat((ours.physics.state.qpos, ours.physics.state.qvel), dim=-1).numpy()
    for column in range(mine.shape[1]):
        if np.ptp(theirs[:, column]) == 0:
            assert np.array_equal(mine[:, column], np.full(4096, theirs[0, column]))
        else:
            assert ks_2samp(mine[:, column], theirs[:, column]).pvalue > 1e-4 / mine.shape[1]
    together = (np.corrcoef(x[:, np.ptp(theirs, axis=0) > 0].T) for x in (mine, theirs))
    np.testing.assert_allclose(*together, atol=0.2)


@every_task
def test_clock_is_gymnasiums(task):
    env = make_env(task, num_envs=1, device=CPU)
    reference = make_reference(task)
    assert env.spec.max_episode_steps == gymnasium.spec(IDS[task]).max_episode_steps
    assert env.task.control_dt == pytest.approx(reference.dt)
