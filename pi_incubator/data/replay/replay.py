"""The replay contract: what off-policy algorithms add to and sample from.

Steps are stored raw: the observation normalizer moves on while they wait. `terminated` and `truncated` are
kept apart, `next.GROUP` is the true last observation of an episode that ended (never the first of the next
one), and `valid` is false where the world broke, so that nothing is learned from the step.

    obs.GROUP    [N, D]  each observation group before the step
    action       [N, A]  in the env's units
    reward       [N]
    terminated   [N]     bool
    truncated    [N]     bool
    next.GROUP   [N, D]  after the step, before any reset
    valid        [N]     bool
    state        [N, S]  of the policy before the step; only buffers for networks with a state store it

A sample has one more, `num_steps` `[B]` int64: `reward` is the discounted sum over so many steps of one
world, and `next.GROUP`, `terminated` and `truncated` are those of the last of them. It is 1, or up to n where
the buffer makes n-step returns. A prioritized buffer adds `index` and `weight`. `sequences.py` describes
samples that are windows of steps.

Letters: N worlds, A actions, D observation width, S state width, B samples of a minibatch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping

import torch
from tensordict import TensorDict
from torch import Tensor

from envs_gpu.vec_env import StepResult

OBS, NEXT = "obs.", "next."


class Replay(ABC):
    """Steps of the past, to be sampled again and again."""

    @abstractmethod
    def add(self, steps: Mapping[str, Tensor]) -> None:
        """Store one step of every world, `[N, ...]` by the names of the module's docstring."""

    @abstractmethod
    def sample(self, size: int) -> TensorDict:
        """A minibatch of batch `[B]`, B = `size`, with the same names and `num_steps`."""

    def update_priority(self, index: Tensor, priority: Tensor) -> None:
        """Tell how much was learned from sampled steps; a buffer that samples uniformly does not care."""

    @property
    @abstractmethod
    def capacity(self) -> int:
        """Most steps that can be held, over all worlds."""

    @property
    @abstractmethod
    def fewest(self) -> int:
        """Fewest steps, over all worlds, from which can be sampled."""

    @abstractmethod
    def __len__(self) -> int:
        """How many steps are held, over all worlds."""

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """Everything that a bit-exact continuation needs."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from what `state_dict` gave."""


def steps_of(
    observation: Mapping[str, Tensor],
    state: Tensor,
    action: Tensor,
    result: StepResult,
    groups: Iterable[str],
) -> dict[str, Tensor]:
    """One step of every world by the names of the contract.

    Args:
        observation: raw groups before the step.
        state: `[N, S]` before the step.
        action: `[N, A]`.
        result: what the env answered.
        groups: the groups to store.
    """
    valid = ~result.broken
    # A loss that masks a step still multiplies its numbers by zero, so they have to be finite.
    action = torch.where(valid.unsqueeze(-1), action, 0.0)
    steps = {OBS + group: observation[group] for group in groups}
    steps |= {NEXT + group: result.final_obs[group] for group in groups}
    return steps | {
        "state": state,
        "action": action,
        "reward": result.reward,
        "terminated": result.terminated,
        "truncated": result.truncated,
        "valid": valid,
    }
