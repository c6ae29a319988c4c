"""What every network of the zoo offers: act, value, and a form for ONNX.

Letters: N worlds, A actions, D observation width, F features.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    """The groups that the networks read, normalized `[N, D]` (pixels as they are): what a rollout stores."""
    action: Tensor
    """`[N, A]`, sampled; not clipped."""
    log_prob: Tensor
    """`[N]`."""
    value: Tensor
    """`[N]`."""
    state: Tensor | None = None
    """`[N, S]` after it, of a policy with a memory."""


class ActorCritic(nn.Module):
    """A Gaussian policy with a state-independent standard deviation, and a value function.

    Args:
        cfg: normalization and initial exploration.
        spec: the env's observation groups and action limits.
        actor: features of the actor's group `[N, F]` -> mean action `[N, A]`.
        critic: features of the critic's group `[N, F]` -> value `[N, 1]`.
        groups: what the actor sees and what the critic sees; None as `observation_groups` says.
        encoders: group -> its encoder, normalized observation -> features `[N, F]`. A group without one is
            its own features; actor and critic share the encoder of a group that both see, and it runs once.
    """

    action_low: Tensor
    action_high: Tensor
    state_width: int = 0
    """S, of the state that acting carries from step to step; 0 where an observation is all it takes."""
    actor_state_width: int = 0
    """How much of the state is the actor's: what the robot needs."""
    actor_features: str
    critic_features: str
    """Under which names the loss finds what actor and critic read; here the groups' own."""

    def __init__(
        self,
        cfg: NetworkSection,
        spec: EnvSpec,
        actor: nn.Module,
        critic: nn.Module,
        groups: tuple[str, str] | None = None,
        encoders: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.actor_group, self.critic_group = groups or observation_groups(spec)
        self.actor_features, self.critic_features = self.actor_group, self.critic_group
        self.groups = tuple(dict.fromkeys((self.actor_group, self.critic_group)))
        self.normalizer = nn.ModuleDict({group: _make_normalizer(cfg, spec, group) for group in self.groups})
        encoders = encoders or {}
        self.encoder = nn.ModuleDict({group: encoders.get(group, nn.Identity()) for group in self.groups})
        self.actor = actor
        self.critic = critic
        self.log_std = nn.Parameter(torch.full((spec.action_dim,), cfg.init_log_std))
        self.register_buffer("action_low", torch.tensor(spec.action_low), persistent=False)
        self.register_buffer("action_high", torch.tensor(spec.action_high), persistent=False)

    def act(self, obs: dict[str, Tensor], noise: Tensor) -> Act:
        """Sample actions from raw observations; `noise` `[N, A]` is standard normal."""
        normalized = self.normalize(obs)
        features = self.encode(normalized)
        mean, std = self.distribution(features[self.actor_group])
        log_prob = torch.distributions.Normal(mean, std, validate_args=False).log_prob(mean + std * noise)
        value = self.critic(features[self.critic_group]).squeeze(-1)
        return Act(normalized, mean + std * noise, log_prob.sum(-1), value)

    def normalize(self, obs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Raw groups -> normalized groups, those that the networks read."""
        return {group: self.normalizer[group](obs[group]) for group in self.groups}

    def encode(self, normalized: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Normalized groups -> their features `[N, F]`."""
        return {group: self.encoder[group](normalized[group]) for group in self.groups}

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

    def distribution(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the action, each `[N, A]`."""
        mean = self.actor(features)
        return mean, self.log_std.exp().expand_as(mean)

    def value(self, obs: dict[str, Tensor] | TensorDict) -> Tensor:
        """Value of raw observations `[N]`."""
        return self.critic(self._features(obs, self.critic_group)).squeeze(-1)

    def mean_action(self, obs: dict[str, Tensor] | TensorDict) -> Tensor:
        """The deterministic action for raw observations `[N, A]`, within the env's limits."""
        mean = self.actor(self._features(obs, self.actor_group))
        return mean.clamp(self.action_low, self.action_high)

    def as_onnx(self) -> nn.Module:
        """Raw observation of the actor's group -> action within the env's limits `[B, A]`."""
        return _DeterministicPolicy(self)

    def _features(self, obs: dict[str, Tensor] | TensorDict, group: str) -> Tensor:
        return self.encoder[group](self.normalizer[group](obs[group]))


class _DeterministicPolicy(nn.Module):
    low: Tensor
    high: Tensor

    def __init__(self, policy: ActorCritic) -> None:
        super().__init__()
        self.normalizer = policy.normalizer[policy.actor_group]
        self.encoder = policy.encoder[policy.actor_group]
        self.actor = policy.actor
        self.register_buffer("low", policy.action_low)
        self.register_buffer("high", policy.action_high)

    def forward(self, observation: Tensor) -> Tensor:
        return self.actor(self.encoder(self.normalizer(observation))).clamp(self.low, self.high)


def _make_normalizer(cfg: NetworkSection, spec: EnvSpec, group: str) -> ObservationNormalizer | NoNormalizer:
    """Pixels have one scale from the start, and stay whole numbers."""
    if not cfg.normalize_observations or spec.obs_dtype(group) == torch.uint8:
        return NoNormalizer()
    return ObservationNormalizer(spec.obs_dims[group], cfg.observation_clip)


def observation_groups(spec: EnvSpec) -> tuple[str, str]:
    """What the actor sees and what the critic sees: the privileged group where the task has one."""
    return "policy", "critic" if "critic" in spec.obs_dims else "policy"
