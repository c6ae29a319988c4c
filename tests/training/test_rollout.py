"""What a rollout remembers: bootstrapping at truncation, and advantages that TorchRL agrees with."""

from dataclasses import replace

import pytest
import torch
from torchrl.objectives.value.functional import generalized_advantage_estimate

from envs_gpu.make import make_env
from pi_incubator.config import ExperimentConfig
from pi_incubator.data.rollout import Rollout
from pi_incubator.training.on_policy import make_act
from tests.envs import record_results
from tests.learning import make_algorithm

NUM_ENVS, HORIZON = 4, 24


@pytest.fixture
def setting():
    cfg = ExperimentConfig.model_validate(
        {
            "env": {"name": "ant", "num_envs": NUM_ENVS},
            "algorithm": {"horizon": HORIZON, "minibatch_size": 32, "normalize_advantage": False},
        }
    )
    torch.manual_seed(0)
    env = make_env("ant", num_envs=NUM_ENVS, device=torch.device("cpu"), seed=0)
    yield cfg, env, make_algorithm(cfg, env)
    env.close()


def test_values_continue_where_the_episode_does(setting):
    """Three kinds of steps: an ordinary one, one that the clock cut off, one that ended by itself."""
    _, env, ppo = setting
    env._episode_step[1] = env.spec.max_episode_steps - 10
    results = record_results(env)
    ppo.collect()
    data, nothing = ppo.rollout.data, ppo.model.initial_state(NUM_ENVS)
    truncated = torch.stack([result.truncated for result in results])
    terminated = torch.stack([result.terminated for result in results])
    assert truncated[9, 1]
    assert not truncated[:9].any()
    next_value = data["next", "state_value"].squeeze(-1)
    with torch.no_grad():
        final_values = torch.stack([ppo.model.value(result.final_obs, nothing) for result in results])
        next_values = torch.stack([ppo.model.value(result.obs, nothing) for result in results])
    ordinary = ~(truncated | terminated)
    torch.testing.assert_close(next_value[truncated], final_values[truncated])
    torch.testing.assert_close(next_value[ordinary], next_values[ordinary])
    assert not torch.isclose(final_values[9, 1], next_values[9, 1])
    assert torch.equal(data["next", "done"].squeeze(-1), truncated | terminated)
    assert torch.equal(data["next", "terminated"].squeeze(-1), terminated)


def test_log_probabilities_are_those_of_the_stored_actions(setting):
    _, _, ppo = setting
    ppo.collect()
    data = ppo.rollout.data
    features, _ = ppo.model.encode({"policy": data["policy"].flatten(0, 1)})
    mean, std = ppo.policy.moments_of(features.unflatten(0, data.shape))
    expected = torch.distributions.Normal(mean, std).log_prob(data["action"]).sum(-1)
    torch.testing.assert_close(data["action_log_prob"], expected)


def test_advantage_is_torchrls(setting):
    cfg, _, ppo = setting
    ppo.collect()
    ppo.advantage(ppo.rollout.data)
    data, following = ppo.rollout.data, ppo.rollout.data["next"]
    advantage, target = generalized_advantage_estimate(
        cfg.algorithm.gamma,
        cfg.algorithm.gae_lambda,
        data["state_value"],
        following["state_value"],
        following["reward"],
        following["done"],
        following["terminated"],
        time_dim=0,
    )
    torch.testing.assert_close(data["advantage"], advantage, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(data["value_target"], target, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_compiled_act_equals_eager(setting):
    _, env, ppo = setting
    obs, noise = dict(env.obs.items()), torch.randn(NUM_ENVS, env.spec.action_dim)
    state = ppo.model.initial_state(NUM_ENVS)
    with torch.no_grad():
        eager, compiled = (make_act(ppo.model, flag)(obs, state, noise) for flag in (False, True))
    for name in ("action", "log_prob", "value"):
        torch.testing.assert_close(getattr(eager, name), getattr(compiled, name), rtol=1e-5, atol=1e-5)


def test_a_rollout_continues_from_the_state_that_the_last_one_ended_in(setting):
    _, env, _ = setting
    one, other = (Rollout(HORIZON, env.spec, ("policy",), state_width=3) for _ in range(2))
    one.end(torch.arange(3.0 * NUM_ENVS).view(NUM_ENVS, 3), torch.zeros(NUM_ENVS))
    other.load_state_dict(one.state_dict())
    assert torch.equal(other.begin(), torch.arange(3.0 * NUM_ENVS).view(NUM_ENVS, 3))


def test_pixels_are_stored_as_whole_numbers_and_a_state_at_every_step(setting):
    _, env, _ = setting
    spec = replace(env.spec, pixels_shape=(1, 8, 8))
    rollout = Rollout(HORIZON, spec, ("policy", "pixels"), state_width=3)
    assert rollout.data["pixels"].dtype == torch.uint8
    assert rollout.data["policy"].dtype == torch.float32
    rollout.begin()[:] = 5.0
    rollout.begin()
    assert rollout.data["state"].shape == (HORIZON, NUM_ENVS, 3)
    assert (rollout.data["state"] == 5.0).all()
