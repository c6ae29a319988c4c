"""Policies whose actions have a probability that on-policy algorithms learn from.

Letters: B samples, A actions, F features.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar, Required, TypedDict

from torch import Tensor
from torch.distributions import Distribution

from pi_incubator.policies.policy import Policy


class PolicyInputs(TypedDict, total=False):
    """Arguments of `kernels.ppo_loss`: mean and log_std, or logits."""

    action: Required[Tensor]
    mean: Tensor
    log_std: Tensor
    logits: Tensor


class StochasticPolicy(Policy):
    """A policy that gives the distribution of its actions, with entropy and log-probabilities."""

    distribution_class: ClassVar[type[Distribution]]
    """Its arguments are `distribution_inputs` by the names of `distribution_keys`."""
    distribution_keys: ClassVar[tuple[str, ...]]

    @abstractmethod
    def distribution_inputs(self, features: Tensor) -> tuple[Tensor, ...]:
        """What the distribution is made of, for features `[..., F]`."""

    @abstractmethod
    def kernel_inputs(self, features: Tensor, action: Tensor) -> PolicyInputs:
        """The arguments of `kernels.ppo_loss` that describe policy and action, for `[B, F]` and `[B, A]`."""

    def distribution(self, features: Tensor) -> Distribution:
        """The distribution of the action `[..., A]` for features `[..., F]`."""
        make: Callable[..., Distribution] = self.distribution_class
        return make(**dict(zip(self.distribution_keys, self.distribution_inputs(features), strict=True)))

    def metrics(self) -> dict[str, Tensor]:
        """0-dim tensors that say how much the policy explores."""
        return {}
