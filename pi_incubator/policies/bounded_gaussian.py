"""A Gaussian around a mean within the env's limits, with a standard deviation that does not depend on the
observation.

Letters: N worlds, B samples, A actions, F features.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from envs_gpu.vec_env import EnvSpec
from pi_incubator.config.network import NetworkSettings
from pi_incubator.layers.encoder import observation_of
from pi_incubator.layers.network import Network
from pi_incubator.policies.bounded import BoundedPolicy
from pi_incubator.policies.normal import log_prob_of
from pi_incubator.policies.policy import PolicyStep

LOG_STD_RANGE = (-5.0, 2.0)
"""Of the Gaussian, in halves of the action's range."""


class BoundedGaussianPolicy(BoundedPolicy):
    """The mean is tanh of the head's output; samples are clipped to the limits.

    Unlike a squashed Gaussian, it gives finite log-probabilities to actions at the limits, which datasets
    hold (the policy of Kostrikov et al. 2021, arXiv 2110.06169).

    Args:
        settings: normalization and initial standard deviation.
        network: builds encoder and head.
        spec: the env's observation groups and action limits.
    """

    log_std: nn.Parameter
    """`[A]`, in halves of the action's range."""

    def __init__(self, settings: NetworkSettings, network: Network, spec: EnvSpec) -> None:
        super().__init__(settings, network, spec, num_outputs=spec.action_dim)
        self.log_std = nn.Parameter(torch.full((spec.action_dim,), settings.init_log_std))

    def act(self, obs: Mapping[str, Tensor], state: Tensor, noise: Tensor) -> PolicyStep:
        """The log-probability is that of the sample before it is clipped."""
        normalized = self.normalizer(obs)
        features, state = self.encoder(observation_of(normalized, self.groups), state)
        unit = self.head(features).tanh() + self._std() * noise
        log_prob = self.log_prob(features, unit) - self.half_range.log().sum()
        return PolicyStep(self.to_env_units(unit.clamp(-1.0, 1.0)), log_prob, state, normalized, features)

    def log_prob(self, features: Tensor, unit: Tensor) -> Tensor:
        """Features `[B, F]` and actions `[B, A]` around (-1, 1) -> the logarithm of their density `[B]`."""
        return log_prob_of(unit, self.head(features).tanh(), self._std())

    def action_of(self, features: Tensor) -> Tensor:
        return self.to_env_units(self.head(features).tanh())

    def moments_of(self, features: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.action_of(features)
        return mean, (self._std() * self.half_range).expand_as(mean)

    def _std(self) -> Tensor:
        return self.log_std.clamp(*LOG_STD_RANGE).exp()
