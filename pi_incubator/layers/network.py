"""What an entry of `pi_incubator.networks` offers: encoders and heads, to build policies and critics from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, TypeVar, cast

from torch import nn

from envs_gpu.vec_env import EnvSpec
from pi_incubator.config.network import HiddenSettings, NetworkSettings
from pi_incubator.layers.encoder import Encoder
from pi_incubator.layers.mlp import ACTIVATIONS, mlp
from pi_incubator.layers.stacked import StackedCritics, Trunk, TrunkEncoder

Settings = TypeVar("Settings", bound=NetworkSettings)
SizedSettings = TypeVar("SizedSettings", bound=HiddenSettings)


class Network(ABC, Generic[Settings]):
    """How the networks for one env are built.

    Args:
        settings: of the config's section `network`.
        spec: the env's observation groups and action limits.
    """

    shares_encoder: bool = False
    """Whether policy and critic share the encoder, where both read the same groups."""

    def __init__(self, settings: NetworkSettings, spec: EnvSpec) -> None:
        self.settings = cast(Settings, settings)
        self.spec = spec

    @property
    @abstractmethod
    def actor_groups(self) -> tuple[str, ...]:
        """The observation groups that the policy reads."""

    @property
    @abstractmethod
    def critic_groups(self) -> tuple[str, ...]:
        """The observation groups that critics read."""

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups that policy and critics read, each once."""
        return tuple(dict.fromkeys((*self.actor_groups, *self.critic_groups)))

    @abstractmethod
    def actor_encoder(self) -> Encoder:
        """A new encoder of `actor_groups`."""

    @abstractmethod
    def critic_encoder(self) -> Encoder:
        """A new encoder of `critic_groups`."""

    @abstractmethod
    def head(self, num_features: int, num_outputs: int, output_gain: float) -> nn.Module:
        """New layers from features `[B, num_features]` to `[B, num_outputs]`."""


class GroupNetwork(Network[Settings]):
    """A network whose policy reads one observation group, and whose critics read one, in the same way."""

    @property
    def actor_group(self) -> str:
        """The observation group that the policy reads."""
        return "policy"

    @property
    def critic_group(self) -> str:
        """The observation group that critics read: the privileged one where the task has it."""
        return "critic" if "critic" in self.spec.obs_dims else "policy"

    @property
    def actor_groups(self) -> tuple[str, ...]:
        return (self.actor_group,)

    @property
    def critic_groups(self) -> tuple[str, ...]:
        return (self.critic_group,)

    def actor_encoder(self) -> Encoder:
        return self.encoder(self.actor_group)

    def critic_encoder(self) -> Encoder:
        return self.encoder(self.critic_group)

    @abstractmethod
    def encoder(self, group: str) -> Encoder:
        """A new encoder for `group`."""


class EncoderNetwork(GroupNetwork[SizedSettings]):
    """A network whose encoder has the first of `hidden_sizes`, and whose heads have the others."""

    def head(self, num_features: int, num_outputs: int, output_gain: float) -> nn.Module:
        sizes = [num_features, *self.settings.hidden_sizes[1:], num_outputs]
        return mlp(sizes, self.activation, output_gain)

    @property
    def activation(self) -> type[nn.Module]:
        """The activation after hidden layers."""
        return ACTIVATIONS[self.settings.activation]


class BatchNormNetwork(GroupNetwork[Settings]):
    """A network with batch normalizations, for algorithms that maintain their moments."""

    @abstractmethod
    def trunk(self, num_inputs: int, copies: int | None = None) -> Trunk:
        """New hidden layers: of the policy, or with `copies` of as many critics side by side."""

    @abstractmethod
    def output(self, num_features: int, num_outputs: int, copies: int | None = None) -> nn.Module:
        """A new last layer behind a trunk."""

    def encoder(self, group: str) -> Encoder:
        return TrunkEncoder(self.trunk(self.spec.obs_dims[group]))

    def head(self, num_features: int, num_outputs: int, output_gain: float) -> nn.Module:
        return self.output(num_features, num_outputs)

    def critics(self, num_critics: int, num_outputs: int) -> StackedCritics:
        """Critics of the group `critic_group` and the action."""
        trunk = self.trunk(self.spec.obs_dims[self.critic_group] + self.spec.action_dim, num_critics)
        return StackedCritics(trunk, self.output(trunk.num_features, num_outputs, num_critics), num_critics)
