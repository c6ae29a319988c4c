"""Whatever can act in worlds, made to act the same way: functions, policies, and policies with a memory.

Letters: N worlds, A actions, D observation width, S state width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from torch import Tensor

if TYPE_CHECKING:
    from tensordict import TensorDict

    from envs_gpu.vec_env import StepResult

Act = Callable[["TensorDict"], Tensor]


@runtime_checkable
class Policy(Protocol):
    """What a policy must offer to be judged."""

    def mean_action(self, obs: TensorDict) -> Tensor:
        """Raw observation groups `[N, D]` -> the deterministic action `[N, A]`."""


@runtime_checkable
class StatefulPolicy(Protocol):
    """What a policy that remembers must offer instead."""

    def initial_state(self, num_worlds: int) -> Tensor:
        """The state at the start of an episode, `[num_worlds, S]` zeros."""

    def mean_step(self, obs: TensorDict, state: Tensor) -> tuple[Tensor, Tensor]:
        """Raw observation groups `[N, D]` and state `[N, S]` -> deterministic action and the next state."""


class Actor:
    """A deterministic policy at work.

    Args:
        act: what it does; forgets nothing, because it remembers nothing.
    """

    state: Tensor | None = None
    """`[N, S]` after the last action, of a policy that remembers."""

    def __init__(self, act: Act) -> None:
        self.act = act

    def observe(self, result: StepResult) -> None:
        """Learn that the worlds have taken a step: where an episode ended, forget it."""


class _Remembering(Actor):
    """Carries the state of a policy from step to step."""

    def __init__(self, policy: StatefulPolicy, num_worlds: int) -> None:
        super().__init__(self._act)
        self._policy = policy
        self.state: Tensor = policy.initial_state(num_worlds)

    def _act(self, obs: TensorDict) -> Tensor:
        action, self.state = self._policy.mean_step(obs, self.state)
        return action

    def observe(self, result: StepResult) -> None:
        done = result.terminated | result.truncated
        self.state = self.state.masked_fill(done.unsqueeze(-1), 0.0)


def as_actor(policy: Policy | StatefulPolicy | Act, num_worlds: int) -> Actor:
    """`policy` at work in `num_worlds` freshly reset worlds."""
    if isinstance(policy, StatefulPolicy):
        return _Remembering(policy, num_worlds)
    return Actor(policy.mean_action if isinstance(policy, Policy) else policy)
