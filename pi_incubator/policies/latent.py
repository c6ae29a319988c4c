"""A policy that acts on the state of a world model, as in DreamerV3 (Hafner et al. 2023, arXiv 2301.04104).

Letters: T steps, N worlds, A actions, F features.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from envs_gpu.vec_env import EnvSpec
from pi_incubator.config.network import NetworkSettings
from pi_incubator.layers.encoder import observation_of, restarted
from pi_incubator.layers.rssm import RSSMEncoder
from pi_incubator.layers.world_model import WorldModelNetwork
from pi_incubator.policies.bounded import BoundedPolicy
from pi_incubator.policies.normal import log_prob_of
from pi_incubator.policies.policy import PolicyStep

STD_RANGE = (0.1, 1.0)
"""Of the action, in halves of its range."""


class LatentPolicy(BoundedPolicy):
    """A Gaussian whose mean lies within the env's limits; samples are clipped to them.

    The state is the model's h, which has already seen the last action. See `layers.rssm`.

    Args:
        settings: normalization.
        network: builds encoder and head.
        spec: the env's observation groups and action limits.
    """

    encoder: RSSMEncoder

    def __init__(self, settings: NetworkSettings, network: WorldModelNetwork, spec: EnvSpec) -> None:
        super().__init__(settings, network, spec, num_outputs=2 * spec.action_dim)

    def act(self, obs: Mapping[str, Tensor], state: Tensor, noise: Tensor) -> PolicyStep:
        """The log-probability is that of the Gaussian, as if nothing was clipped."""
        normalized = self.normalizer(obs)
        features, state = self.encoder(observation_of(normalized, self.groups), state)
        mean, std = self.unit_moments(features)
        unit = mean + std * noise
        log_prob = log_prob_of(unit, mean, std) - self.half_range.log().sum()
        action = self.to_env_units(unit.clamp(-1.0, 1.0))
        state = self.state_after(features, state, action)
        return PolicyStep(action, log_prob, state, normalized, features)

    def state_after(self, features: Tensor, state: Tensor, action: Tensor) -> Tensor:
        return self.encoder.advance(features, self.to_unit(action))

    def unit_moments(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features `[..., F]` -> mean and standard deviation in halves of the range, each `[..., A]`."""
        loc, raw = self.head(features).chunk(2, -1)
        low, high = STD_RANGE
        return loc.tanh(), low + (high - low) * (raw + 2.0).sigmoid()

    def action_of(self, features: Tensor) -> Tensor:
        return self.to_env_units(self.unit_moments(features)[0])

    def moments_of(self, features: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = self.unit_moments(features)
        return self.to_env_units(mean), self.half_range * std

    def sequence(self, normalized: Mapping[str, Tensor], state: Tensor, starts: Tensor) -> Tensor:
        """Features `[T, N, F]` where every action is the policy's mean: h depends on what was done."""
        observation, rows = observation_of(normalized, self.groups), []
        for t in range(len(observation)):
            features, state = self.encoder(observation[t], restarted(state, starts[t]))
            rows.append(features)
            state = self.state_after(features, state, self.action_of(features))
        return torch.stack(rows)
