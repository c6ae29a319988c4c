"""Anything that can act in worlds, made to act the same way: policies, and functions of the observation.

Letters: N worlds, A actions, D observation width, S state width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch import Tensor

if TYPE_CHECKING:
    from tensordict import TensorDict

    from envs_gpu.vec_env import StepResult

Act = Callable[["TensorDict"], Tensor]


class Acting(Protocol):
    """What must be offered to be judged; every `Policy` and every exported policy does."""

    def initial_state(self, num_worlds: int) -> Tensor:
        """The state at the start of an episode, `[num_worlds, S]` zeros; S may be 0."""

    def mean(self, obs: TensorDict, state: Tensor) -> tuple[Tensor, Tensor]:
        """Raw observation groups `[N, D]` and state `[N, S]` -> deterministic action and the next state."""


class FunctionPolicy:
    """A function from observation groups to actions `[N, A]`, as something that acts.

    Args:
        function: has no state.
    """

    def __init__(self, function: Act) -> None:
        self._function = function

    def initial_state(self, num_worlds: int) -> Tensor:
        return torch.zeros(num_worlds, 0)

    def mean(self, obs: TensorDict, state: Tensor) -> tuple[Tensor, Tensor]:
        return self._function(obs), state


class Actor:
    """A deterministic policy at work; it carries the state from step to step.

    Args:
        policy: what acts.
        num_worlds: N, freshly reset.
    """

    def __init__(self, policy: Acting, num_worlds: int) -> None:
        self._policy = policy
        self.state = policy.initial_state(num_worlds)
        """`[N, S]` after the last action."""

    def act(self, obs: TensorDict) -> Tensor:
        """The actions `[N, A]` for raw observation groups."""
        action, self.state = self._policy.mean(obs, self.state)
        return action

    def observe(self, result: StepResult) -> None:
        """Zero the state of worlds whose episode ended with the step that gave `result`."""
        if self.state.shape[1]:
            done = result.terminated | result.truncated
            self.state = self.state.masked_fill(done.unsqueeze(-1), 0.0)


def as_actor(policy: Acting | Act, num_worlds: int) -> Actor:
    """`policy` at work in `num_worlds` freshly reset worlds."""
    is_policy = hasattr(policy, "mean")
    return Actor(cast(Acting, policy) if is_policy else FunctionPolicy(cast(Act, policy)), num_worlds)
