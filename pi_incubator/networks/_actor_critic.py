"""What every network of the zoo offers: act, value, and a form for ONNX.

Letters: N worlds, A actions, D observation width.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from envs_gpu.vec_env import EnvSpec
from pi_incubator.config.models import NetworkSection
from pi_incubator.networks._normalizer import NoNormalizer, ObservationNormalizer


class Act(NamedTuple):
    """One decision for every world."""

    observation: dict[str, Tensor]
    """The groups that the networks read, normalized `[N, D]`: what a rollout stores."""
    action: Tensor
    """`[N, A]`, sampled; not clipped."""
    log_prob: Tensor
    """`[N]`."""
    value: Tensor
    """`[N]`."""


class ActorCritic(nn.Module):
    """A Gaussian policy with a state-independent standard deviation, and a value function.

    Args:
        cfg: normalization and initial exploration.
        spec: the env's observation groups and action limits.
        actor: normalized policy observation `[N, D]` -> mean action `[N, A]`.
        critic: normalized critic observation `[N, D]` -> value `[N, 1]`.
    """

    action_low: Tensor
    action_high: Tensor

    def __init__(self, cfg: NetworkSection, spec: EnvSpec, actor: nn.Module, critic: nn.Module) -> None:
        super().__init__()
        self.actor_group, self.critic_group = observation_groups(spec)
        self.groups = tuple(dict.fromkeys((self.actor_group, self.critic_group)))
        self.normalizer = nn.ModuleDict(
            {
                group: ObservationNormalizer(spec.obs_dims[group], cfg.observation_clip)
                if cfg.normalize_observations
                else NoNormalizer()
                for group in self.groups
            }
        )
        self.actor = actor
        self.critic = critic
        self.log_std = nn.Parameter(torch.full((spec.action_dim,), cfg.init_log_std))
        self.register_buffer("action_low", torch.tensor(spec.action_low), persistent=False)
        self.register_buffer("action_high", torch.tensor(spec.action_high), persistent=False)

    def act(self, obs: dict[str, Tensor], noise: Tensor) -> Act:
        """Sample actions from raw observations; `noise` `[N, A]` is standard normal."""
        normalized = self.normalize(obs)
        mean, std = self.distribution(normalized[self.actor_group])
        log_prob = torch.distributions.Normal(mean, std, validate_args=False).log_prob(mean + std * noise)
        value = self.critic(normalized[self.critic_group]).squeeze(-1)
        return Act(normalized, mean + std * noise, log_prob.sum(-1), value)

    def normalize(self, obs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Raw groups -> normalized groups, those that the networks read."""
        return {group: self.normalizer[group](obs[group]) for group in self.groups}

    def gather(self, obs: dict[str, Tensor]) -> None:
        """Let the normalizers see raw observations; they take effect at `commit`."""
        for group in self.groups:
            self._normalizer(group).gather(obs[group])

    def commit(self) -> None:
        """Let what was gathered take effect."""
        for group in self.groups:
            self._normalizer(group).commit()

    def _normalizer(self, group: str) -> ObservationNormalizer:
        return cast(ObservationNormalizer, self.normalizer[group])

    def distribution(self, normalized: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the action, each `[N, A]`."""
        mean = self.actor(normalized)
        return mean, self.log_std.exp().expand_as(mean)

    def value(self, obs: dict[str, Tensor] | TensorDict) -> Tensor:
        """Value of raw observations `[N]`."""
        return self.critic(self.normalizer[self.critic_group](obs[self.critic_group])).squeeze(-1)

    def mean_action(self, obs: dict[str, Tensor] | TensorDict) -> Tensor:
        """The deterministic action for raw observations `[N, A]`, within the env's limits."""
        mean = self.actor(self.normalizer[self.actor_group](obs[self.actor_group]))
        return mean.clamp(self.action_low, self.action_high)

    def as_onnx(self) -> nn.Module:
        """Raw policy observation `[B, D]` -> action within the env's limits `[B, A]`, normalizer inside."""
        return _DeterministicPolicy(self)


class _DeterministicPolicy(nn.Module):
    low: Tensor
    high: Tensor

    def __init__(self, policy: ActorCritic) -> None:
        super().__init__()
        self.normalizer = policy.normalizer[policy.actor_group]
        self.actor = policy.actor
        self.register_buffer("low", policy.action_low)
        self.register_buffer("high", policy.action_high)

    def forward(self, observation: Tensor) -> Tensor:
        return self.actor(self.normalizer(observation)).clamp(self.low, self.high)


def observation_groups(spec: EnvSpec) -> tuple[str, str]:
    """What the actor sees and what the critic sees: the privileged group where the task has one."""
    return "policy", "critic" if "critic" in spec.obs_dims else "policy"
