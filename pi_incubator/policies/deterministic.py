"""A deterministic policy within the env's limits, with Gaussian noise to explore (Lillicrap et al. 2016).

Letters: N worlds, A actions, F features.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from envs_gpu.vec_env import EnvSpec
from pi_incubator.config.network import NetworkSettings
from pi_incubator.layers.encoder import observation_of
from pi_incubator.layers.network import Network
from pi_incubator.policies.bounded import BoundedPolicy
from pi_incubator.policies.normal import log_density
from pi_incubator.policies.policy import PolicyStep


class DeterministicPolicy(BoundedPolicy):
    """The action is tanh of the head's output; exploring adds noise before it is clipped to the limits.

    Args:
        settings: normalization.
        network: builds encoder and head.
        spec: the env's observation groups and action limits.
        exploration_std: standard deviation of the noise, in halves of the action's range.
    """

    def __init__(
        self, settings: NetworkSettings, network: Network, spec: EnvSpec, exploration_std: float = 0.1
    ) -> None:
        super().__init__(settings, network, spec, num_outputs=spec.action_dim)
        self.exploration_std = exploration_std

    def act(self, obs: Mapping[str, Tensor], state: Tensor, noise: Tensor) -> PolicyStep:
        """The log-probability is that of the noise, as if nothing was clipped."""
        normalized = self.normalizer(obs)
        features, state = self.encoder(observation_of(normalized, self.groups), state)
        unit = (self.unit_action(features) + self.exploration_std * noise).clamp(-1.0, 1.0)
        log_prob = log_density(noise, self.exploration_std * self.half_range).sum(-1)
        return PolicyStep(self.to_env_units(unit), log_prob, state, normalized, features)

    def unit_action(self, features: Tensor) -> Tensor:
        """Features `[..., F]` -> the action without noise, in (-1, 1) `[..., A]`."""
        unit: Tensor = self.head(features).tanh()
        return unit

    def action_of(self, features: Tensor) -> Tensor:
        return self.to_env_units(self.unit_action(features))

    def moments_of(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The standard deviation is that of the exploration noise."""
        mean = self.action_of(features)
        return mean, torch.zeros_like(mean) + self.exploration_std * self.half_range
