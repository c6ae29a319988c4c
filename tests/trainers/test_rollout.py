"""What a rollout remembers: bootstrapping at truncation, and advantages that TorchRL agrees with."""

import pytest
import torch
from pi_incubator.trainers.on_policy import collect, make_act
from pi_incubator.trainers.rollout import Rollout
from torchrl.objectives.value.functional import generalized_advantage_estimate

from envs_gpu.make import make_env
from pi_incubator.algorithms import make_algorithm
from pi_incubator.config import ExperimentConfig
from pi_incubator.networks import make_network
from tests.envs import record_results

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
    policy = make_network(cfg.network, env.spec)
    return cfg, env, policy, Rollout(HORIZON, env.spec, policy.groups)


def test_values_continue_where_the_episode_does(setting):
    """Three kinds of steps: an ordinary one, one that the clock cut off, one that ended by itself."""
    _, env, policy, rollout = setting
    env._episode_step[1] = env.spec.max_episode_steps - 10
    results = record_results(env)
    collect(env, policy, make_act(policy, False), rollout)
    data = rollout.data
    truncated = torch.stack([result.truncated for result in results])
    terminated = torch.stack([result.terminated for result in results])
    assert truncated[9, 1]
    assert not truncated[:9].any()
    next_value = data["next", "state_value"].squeeze(-1)
    with torch.no_grad():
        final_values = torch.stack([policy.value(result.final_obs) for result in results])
        next_values = torch.stack([policy.value(result.obs) for result in results])
    ordinary = ~(truncated | terminated)
    torch.testing.assert_close(next_value[truncated], final_values[truncated])
    torch.testing.assert_close(next_value[ordinary], next_values[ordinary])
    assert not torch.isclose(final_values[9, 1], next_values[9, 1])
    assert torch.equal(data["next", "done"].squeeze(-1), truncated | terminated)
    assert torch.equal(data["next", "terminated"].squeeze(-1), terminated)


def test_log_probabilities_are_those_of_the_stored_actions(setting):
    _, env, policy, rollout = setting
    collect(env, policy, make_act(policy, False), rollout)
    mean, std = policy.distribution(rollout.data["policy"])
    expected = torch.distributions.Normal(mean, std).log_prob(rollout.data["action"]).sum(-1)
    torch.testing.assert_close(rollout.data["action_log_prob"], expected)


def test_advantage_is_torchrls(setting):
    cfg, env, policy, rollout = setting
    learner = make_algorithm(cfg, policy)
    collect(env, policy, make_act(policy, False), rollout)
    learner.advantage(rollout.data)
    data, following = rollout.data, rollout.data["next"]
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


def test_compiled_act_equals_eager(setting):
    _, env, policy, _ = setting
    obs, noise = dict(env.obs.items()), torch.randn(NUM_ENVS, env.spec.action_dim)
    with torch.no_grad():
        eager, compiled = (make_act(policy, flag)(obs, noise) for flag in (False, True))
    for name in ("action", "log_prob", "value"):
        torch.testing.assert_close(getattr(eager, name), getattr(compiled, name), rtol=1e-5, atol=1e-5)
