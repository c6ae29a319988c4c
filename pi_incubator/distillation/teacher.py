"""A trained policy that labels the states where a student is.

Letters: N worlds, A actions, F features of the last hidden layer, S state width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pi_incubator.policies.actor_critic import ValueFunction
from pi_incubator.policies.policy import Policy

MEAN, STD, VALUE, FEATURES = "mean", "std", "value", "features"
LABELS = (MEAN, STD, VALUE, FEATURES)
"""What a teacher says about each state: `mean` and `std` `[N, A]` of its action, not clipped; `value` `[N]`,
where it has a value function; `features` `[N, F]`, the input of the last layer of its head."""


class LastHidden:
    """Keeps the input `[N, F]` of the last linear layer of `head` at its last call."""

    features: Tensor

    def __init__(self, head: nn.Module) -> None:
        layer = [layer for layer in head.modules() if isinstance(layer, nn.Linear)][-1]
        self.width = layer.in_features
        self._hook = layer.register_forward_pre_hook(self._keep)

    def remove(self) -> None:
        """Keep nothing from now on."""
        self._hook.remove()

    def _keep(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.features = inputs[0]


class Teacher:
    """A frozen policy, its value function if it has one, and the name of its run.

    Args:
        name: of its run.
        policy: trained; is frozen.
        critic: trained with it; is frozen.
    """

    def __init__(self, name: str, policy: Policy, critic: ValueFunction | None) -> None:
        self.name = name
        self.policy = policy.requires_grad_(False).eval()
        self.critic = None if critic is None else critic.requires_grad_(False).eval()
        self._hidden = LastHidden(policy.head)

    @property
    def feature_width(self) -> int:
        """F."""
        return self._hidden.width

    def initial_state(self, num_worlds: int) -> Tensor:
        """The state at the start of an episode, `[num_worlds, S]` zeros."""
        width = self.policy.state_width + (self.critic.state_width if self.critic else 0)
        return self.policy.action_low.new_zeros(num_worlds, width)

    @torch.no_grad()
    def label(self, obs: Mapping[str, Tensor], state: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The labels of raw observation groups, of which it reads its own, and its next state.

        Args:
            obs: raw groups.
            state: `[N, S]`.
        """
        width = self.policy.state_width
        actor_state, critic_state = state[:, :width], state[:, width:]
        mean, std, actor_state = self.policy.moments(obs, actor_state)
        labels = {MEAN: mean, STD: std, FEATURES: self._hidden.features}
        if self.critic:
            normalizer = self.policy.normalizer
            normalized = {group: normalizer[group](obs[group]) for group in self.critic.groups}
            labels[VALUE], critic_state = self.critic(normalized, critic_state)
        return labels, torch.cat((actor_state, critic_state), -1)


def num_parameters(*modules: nn.Module) -> int:
    """Trained numbers of `modules`; the moments of a normalizer are measured, and so do not count."""
    return sum(parameter.numel() for module in modules for parameter in module.parameters())
