"""A2C's gradient is that of its formula in float64, and networks with a state learn from sequences."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from envs_gpu.make import make_env
from pi_incubator.algorithms.a2c import A2C
from pi_incubator.config import ExperimentConfig
from tests.learning import make_algorithm

T, N = 8, 4
CPU = torch.device("cpu")


def make_a2c(network: dict[str, Any], **algorithm: Any) -> A2C:
    """The same weights every time; a minibatch is the whole rollout."""
    sizes = {"name": "a2c", "horizon": T, "minibatch_size": T * N}
    env = {"name": "cartpole_balance", "num_envs": N}
    sections = {"env": env, "algorithm": sizes | algorithm, "network": {"hidden_sizes": [8]} | network}
    torch.manual_seed(0)
    cfg = ExperimentConfig.model_validate(sections)
    return make_algorithm(cfg, make_env("cartpole_balance", num_envs=N, device=CPU))


@pytest.mark.parametrize("entropy_coef", [0.0, 0.3])
@pytest.mark.parametrize("network", ["mlp", "gru"])
def test_the_gradient_is_the_papers(network: str, entropy_coef: float) -> None:
    """Mnih et al. 2016, algorithm S3: grad log pi (R - V), c (R - V)^2 and the entropy, R up to T steps long.

    One minibatch is one optimizer step, in the direction of that gradient.
    """
    a2c = make_a2c({"name": network}, entropy_coef=entropy_coef, value_coef=0.7, gamma=0.9)
    a2c.collect()
    data = a2c.rollout.data
    reward, value = (x.double().squeeze(-1) for x in (data["next", "reward"], data["state_value"]))
    following = data["next", "state_value"][-1].double().squeeze(-1)
    returns = []
    for t in reversed(range(T)):
        following = reward[t] + 0.9 * following
        returns.insert(0, following)
    target = torch.stack(returns)

    a2c.advantage(data)
    torch.testing.assert_close(data["value_target"].squeeze(-1).double(), target, rtol=1e-5, atol=1e-5)
    (minibatch,) = a2c._minibatches(data).shuffled(a2c.order)
    gradients, _ = a2c._gradients(minibatch)

    state, terms = data["state"][0] if a2c.model.state_width else a2c.model.initial_state(N), []
    for t in range(T):
        decision = a2c.model.act({"policy": data["policy"][t]}, state, torch.zeros(N, 1))
        state = decision.state
        normal = torch.distributions.Normal(decision.action, a2c.policy.log_std.exp())
        log_prob = normal.log_prob(data["action"][t]).sum(-1)
        error = (decision.value - target[t].float()).square()
        advantage = (target[t] - value[t]).float()
        terms.append(-log_prob * advantage + 0.7 * error - entropy_coef * normal.entropy().sum(-1))
    expected = torch.autograd.grad(torch.stack(terms).mean(), a2c.parameters)
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
    assert int(a2c.optimizer.step_count[0]) == 0
    a2c.learn(data)
    assert int(a2c.optimizer.step_count[0]) == 1
