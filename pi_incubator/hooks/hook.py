"""The shape of a hook, and what it is told."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from pi_incubator.checkpoint import Part
from pi_incubator.training.algorithm import Algorithm


@dataclass(frozen=True)
class Progress:
    """How far the training is after an iteration."""

    iteration: int
    """The one just completed, counted from 0."""
    env_steps: int
    """Environment steps so far, over all worlds of all ranks."""
    metrics: dict[str, Tensor]
    """0-dim tensors of the last update, on the device."""
    is_last: bool
    """Whether no iteration follows."""
    algorithm: Algorithm
    """What is trained: its `policy`, and its `env`, whose task parameters a curriculum sets."""
    stops: bool = False
    """Whether a signal ends the training after this iteration. Hooks that have been called for the iteration
    are not called again; the others are asked once more with `stops`."""


class Hook(ABC):
    """Something that happens after some iterations."""

    @abstractmethod
    def due(self, progress: Progress) -> bool:
        """Whether it happens now; called after every iteration."""

    @abstractmethod
    def __call__(self, progress: Progress) -> None:
        """Do it."""

    def state_dict(self) -> dict[str, Tensor]:
        """What a continued run needs of this hook; a hook without state is not saved."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from what `state_dict` gave; raise `errors.StateError` where that is not possible."""


def parts_of_hooks(hooks: Sequence[Hook]) -> dict[str, Part]:
    """The parts of a checkpoint that keep the state of hooks, for those that define `state_dict`.

    A part has the name of the hook's class, with a number from the second of a class on. A continued run may
    have hooks that the checkpoint does not know: they start anew.
    """
    parts: dict[str, Part] = {}
    for hook in hooks:
        if type(hook).state_dict is not Hook.state_dict:
            name = f"hook_{type(hook).__name__}"
            number = sum(known.partition("-")[0] == name for known in parts)
            parts[f"{name}-{number + 1}" if number else name] = Part(hook, may_be_missing=True)
    return parts


def is_due(progress: Progress, every: int) -> bool:
    """Whether something that happens `every` iterations, and when training ends, happens now."""
    return progress.is_last or progress.stops or (progress.iteration + 1) % every == 0
