"""Our cartpole against dm_control's."""

import numpy as np
import pytest
import torch
from dm_control import suite

from envs_gpu.make import make_env


@pytest.mark.parametrize("name", ["balance", "swingup"])
def test_every_step_is_dm_controls(name):
    reference = suite.load("cartpole", name, task_kwargs={"random": 0})
    env = make_env(f"cartpole_{name}", num_envs=2, device=torch.device("cpu"))
    rng = np.random.default_rng(0)
    reference.reset()
    everyone = torch.ones(2, dtype=torch.bool)
    for step in range(300):
        data = reference.physics.data
        qpos, qvel = (torch.tensor(np.array(x)).expand(2, -1) for x in (data.qpos, data.qvel))
        env.physics.set_state(everyone, qpos, qvel)  # both sides step from the same state
        action = rng.uniform(-1, 1, 1).astype(np.float32)
        theirs = reference.step(action)
        ours = env.step(torch.tensor(action).expand(2, -1))
        observation = np.concatenate([theirs.observation["position"], theirs.observation["velocity"]])
        np.testing.assert_allclose(
            ours.final_obs["policy"][0], observation, atol=2e-6, err_msg=f"step {step}"
        )
        assert ours.reward[0].item() == pytest.approx(theirs.reward, abs=2e-6)
    env.close()


@pytest.mark.parametrize("name", ["balance", "swingup"])
def test_episode_is_cut_off_after_ten_seconds(name):
    env = make_env(f"cartpole_{name}", num_envs=2, device=torch.device("cpu"))
    assert env.spec.episode_length_s == suite.load("cartpole", name)._step_limit * 0.01
    env.close()
