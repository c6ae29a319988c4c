"""A trained policy that says what it would do where a student stands.

Letters: N worlds, A actions, F features of the last hidden layer, S width of a state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pi_incubator.networks._actor_critic import ActorCritic
from pi_incubator.networks._stateful import StatefulActorCritic


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
    def label(self, obs: Mapping[str, Tensor], state: Tensor) -> tuple[Labels, Tensor]:
        """What it says about raw observation groups, of which it reads its own, and its next state.

        Args:
            obs: raw groups.
            state: `[N, S]` of a policy with a memory; S is 0 of any other.
        """
        policy, groups = self.policy, dict(obs.items())
        noise = torch.zeros_like(policy.action_low.expand(len(state), -1))
        if isinstance(policy, StatefulActorCritic):
            decision = policy.act(groups, noise, state)
        else:
            decision = policy.act(groups, noise)
        mean = decision.action
        labels = Labels(mean, policy.log_std.exp().expand_as(mean), decision.value, self._hidden.features)
        return labels, state if decision.state is None else decision.state


def num_parameters(module: nn.Module) -> int:
    """Numbers that training chose; a normalizer's moments are measured, and so do not count."""
    return sum(parameter.numel() for parameter in module.parameters())
