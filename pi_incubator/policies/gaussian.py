"""A Gaussian policy with a standard deviation that does not depend on the observation."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torchrl.modules import IndependentNormal

from envs_gpu.vec_env import EnvSpec
from pi_incubator.config.network import NetworkSettings
from pi_incubator.layers.network import Network
from pi_incubator.policies.policy import PolicyStep
from pi_incubator.policies.stochastic import PolicyInputs, StochasticPolicy


class GaussianPolicy(StochasticPolicy):
    """Actions are sampled unbounded; the env clips them, and the deterministic action lies within the limits.

    Args:
        settings: normalization and initial exploration.
        network: builds encoder and head.
        spec: the env's observation groups and action limits.
    """

    distribution_class, distribution_keys = IndependentNormal, ("loc", "scale")
    log_std: nn.Parameter
    """`[A]`."""

    def __init__(self, settings: NetworkSettings, network: Network, spec: EnvSpec) -> None:
        super().__init__(settings, network, spec, num_outputs=spec.action_dim)
        self.log_std = nn.Parameter(torch.full((spec.action_dim,), settings.init_log_std))

    def act(self, obs: Mapping[str, Tensor], state: Tensor, noise: Tensor) -> PolicyStep:
        normalized = self.normalizer(obs)
        features, state = self.encoder(normalized[self.group], state)
        mean, std = self.moments_of(features)
        action = mean + std * noise
        log_prob = torch.distributions.Normal(mean, std, validate_args=False).log_prob(action)
        return PolicyStep(action, log_prob.sum(-1), state, normalized, features)

    def moments_of(self, features: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.head(features)
        return mean, self.log_std.exp().expand_as(mean)

    def distribution_inputs(self, features: Tensor) -> tuple[Tensor, ...]:
        return self.moments_of(features)

    def kernel_inputs(self, features: Tensor, action: Tensor) -> PolicyInputs:
        return {"mean": self.head(features), "log_std": self.log_std, "action": action}

    def metrics(self) -> dict[str, Tensor]:
        return {"policy/std": self.log_std.detach().exp().mean()}

    def action_of(self, features: Tensor) -> Tensor:
        return self.head(features).clamp(self.action_low, self.action_high)
