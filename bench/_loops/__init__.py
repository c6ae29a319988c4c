"""What is measured side by side: one file a loop, each with `make(settings) -> Loop`.

The files import what they measure inside `make` or the class, so that the parent process stays light and a
loop's process holds nothing of another loop.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

RECENT_EPISODES = 100
"""Over how many of the last episodes of training a return is averaged."""


class Loop(ABC):
    """Something that takes environment steps, iteration by iteration."""

    facts: dict[str, Any]
    """What a reader must know to judge its speed, as JSON types."""

    @abstractmethod
    def iterate(self) -> int:
        """Run one iteration; returns how many environment steps it took, over all worlds."""

    @property
    def num_updates(self) -> int:
        """Optimizer steps so far; 0 where they are not counted."""
        return 0

    def warm_up(self) -> None:
        """Iterate until nothing is built or compiled any more."""
        self.iterate()

    def synchronize(self) -> None:
        """Wait for work that the device has not finished."""


class ScoredLoop(Loop):
    """A loop that tells how its training goes."""

    @abstractmethod
    def recent_return(self) -> float | None:
        """Mean return of the last RECENT_EPISODES episodes of training; None while there are fewer."""
