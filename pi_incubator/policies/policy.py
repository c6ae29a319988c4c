"""The policy contract: everything that acts, exports, evaluates or distils is typed to `Policy`.

Every policy carries a state `[N, S]` from step to step; S is 0 where the observation is all that it needs.

Letters: T steps, N worlds, A actions, D observation width, F features, S state width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from envs_gpu.vec_env import EnvSpec
from pi_incubator.config.network import NetworkSettings
from pi_incubator.layers.encoder import observation_of
from pi_incubator.layers.network import Network
from pi_incubator.layers.normalizer import make_normalizer


class PolicyStep(NamedTuple):
    """One decision for every world."""

    action: Tensor
    """`[N, A]`, sampled."""
    log_prob: Tensor
    """`[N]`, of the action."""
    state: Tensor
    """`[N, S]` after it."""
    observation: dict[str, Tensor]
    """The groups of `policy.normalizer`, normalized `[N, D]` (pixels as they are)."""
    features: Tensor
    """`[N, F]`, what the encoder made of the observation."""


class ActionMoments(NamedTuple):
    """The distribution of the action, in the env's units."""

    mean: Tensor
    """`[N, A]`."""
    std: Tensor
    """`[N, A]`."""
    state: Tensor
    """`[N, S]` after the action."""


class Policy(nn.Module, ABC):
    """An encoder of observation groups, and a head that gives the action's distribution.

    Args:
        settings: of the config's section `network`.
        network: builds encoder and head.
        spec: the env's observation groups and action limits.
        num_outputs: of the head.
    """

    groups: tuple[str, ...]
    """The observation groups that it acts on."""
    action_low: Tensor
    action_high: Tensor

    def __init__(self, settings: NetworkSettings, network: Network, spec: EnvSpec, num_outputs: int) -> None:
        super().__init__()
        self.groups = network.actor_groups
        self.normalizer = make_normalizer(
            spec, network.groups, settings.normalize_observations, settings.observation_clip
        )
        self.encoder = network.actor_encoder()
        self.head = network.head(self.encoder.num_features, num_outputs, output_gain=0.01)
        self.register_buffer("action_low", torch.tensor(spec.action_low), persistent=False)
        self.register_buffer("action_high", torch.tensor(spec.action_high), persistent=False)

    @property
    def state_width(self) -> int:
        """S."""
        return self.encoder.state_width

    def initial_state(self, num_worlds: int) -> Tensor:
        """The state at the start of an episode, `[num_worlds, S]` zeros."""
        return self.action_low.new_zeros(num_worlds, self.state_width)

    @abstractmethod
    def act(self, obs: Mapping[str, Tensor], state: Tensor, noise: Tensor) -> PolicyStep:
        """Sample actions from raw observation groups and `state` `[N, S]`.

        `obs` holds every group of `normalizer`; `noise` `[N, A]` is standard normal.
        """

    @abstractmethod
    def action_of(self, features: Tensor) -> Tensor:
        """Features `[..., F]` -> the deterministic action `[..., A]`, within the env's limits."""

    @abstractmethod
    def moments_of(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features `[..., F]` -> mean and standard deviation of the action, each `[..., A]`."""

    def state_after(self, features: Tensor, state: Tensor, action: Tensor) -> Tensor:
        """The next state `[N, S]` where `action` `[N, A]` is taken, in the env's units.

        `features` `[N, F]` and `state` are what the encoder gave. Most encoders do not see actions.
        """
        return state

    def mean(self, obs: Mapping[str, Tensor], state: Tensor) -> tuple[Tensor, Tensor]:
        """The deterministic action `[N, A]` for raw observation groups, and the next state `[N, S]`."""
        features, state = self.encode(obs, state)
        action = self.action_of(features)
        return action, self.state_after(features, state, action)

    def moments(self, obs: Mapping[str, Tensor], state: Tensor) -> ActionMoments:
        """The distribution of the action for raw observation groups, and the next state."""
        features, state = self.encode(obs, state)
        mean, std = self.moments_of(features)
        return ActionMoments(mean, std, self.state_after(features, state, mean))

    def sequence(self, normalized: Mapping[str, Tensor], state: Tensor, starts: Tensor) -> Tensor:
        """Features `[T, N, F]` of normalized groups `[T, N, D]`; see `Encoder.sequence`."""
        return self.encoder.sequence(observation_of(normalized, self.groups), state, starts)

    def as_onnx(self) -> nn.Module:
        """A module from a raw observation `[B, D]` of each of `groups` to the deterministic action `[B, A]`.

        Where S is above 0 it takes the state `[B, S]` too, and also gives the next one.
        """
        if len(self.groups) > 1:
            return _GroupsGraph(self)
        return (_StatefulGraph if self.state_width else _StatelessGraph)(self)

    def encode(self, obs: Mapping[str, Tensor], state: Tensor) -> tuple[Tensor, Tensor]:
        """Features `[N, F]` of raw observation groups, and the next state of the encoder.

        Unlike `act`, it needs no group that only the critic reads.
        """
        normalized = {group: self.normalizer[group](obs[group]) for group in self.groups}
        return self.encoder(observation_of(normalized, self.groups), state)


class _StatelessGraph(nn.Module):
    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, observation: Tensor) -> Tensor:
        policy = self.policy
        state = observation.new_zeros(0, dtype=torch.float32)
        features, _ = policy.encode({policy.groups[0]: observation}, state)
        return policy.action_of(features)


class _StatefulGraph(nn.Module):
    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, observation: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        policy = self.policy
        features, hidden = policy.encode({policy.groups[0]: observation}, hidden)
        action = policy.action_of(features)
        return action, policy.state_after(features, hidden, action)


class _GroupsGraph(nn.Module):
    """Of several groups; encoders of several have no state."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        policy = self.policy
        obs = dict(zip(policy.groups, (first, *others), strict=True))
        features, _ = policy.encode(obs, policy.initial_state(0))
        return policy.action_of(features)
