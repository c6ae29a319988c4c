"""A trained policy that says what it would do where a student stands.

Letters: N worlds, A actions, F features of the last hidden layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pi_incubator.networks._actor_critic import ActorCritic


class Labels(NamedTuple):
    """What a teacher says about the states of N worlds."""

    mean: Tensor
    """`[N, A]`, not clipped."""
    std: Tensor
    """`[N, A]`."""
    value: Tensor
    """`[N]`."""
    features: Tensor
    """`[N, F]`: what the actor's last layer sees."""


class LastHidden:
    """Keeps what the last linear layer of `actor` was given at its last call, `[N, F]`."""

    features: Tensor

    def __init__(self, actor: nn.Module) -> None:
        layer = [layer for layer in actor.modules() if isinstance(layer, nn.Linear)][-1]
        self.width = layer.in_features
        self._hook = layer.register_forward_pre_hook(self._keep)

    def remove(self) -> None:
        """Keep nothing any more."""
        self._hook.remove()

    def _keep(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.features = inputs[0]


class Teacher:
    """A frozen policy and its name.

    Args:
        name: of its run.
        policy: trained; is frozen.
    """

    def __init__(self, name: str, policy: ActorCritic) -> None:
        self.name = name
        self.policy = policy.requires_grad_(False).eval()
        self._hidden = LastHidden(policy.actor)

    @property
    def feature_width(self) -> int:
        """F."""
        return self._hidden.width

    @torch.no_grad()
    def label(self, obs: Mapping[str, Tensor]) -> Labels:
        """What it says about raw observation groups, of which it reads its own."""
        features = self.policy.encode(self.policy.normalize(dict(obs.items())))
        mean, std = self.policy.distribution(features[self.policy.actor_group])
        value = self.policy.critic(features[self.policy.critic_group]).squeeze(-1)
        return Labels(mean, std, value, self._hidden.features)


def num_parameters(module: nn.Module) -> int:
    """Numbers that training chose; a normalizer's moments are measured, and so do not count."""
    return sum(parameter.numel() for parameter in module.parameters())
