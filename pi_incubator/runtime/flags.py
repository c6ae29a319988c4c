"""What was remarkable about a step."""

from __future__ import annotations

from enum import IntFlag


class Flags(IntFlag):
    """Several may be set at once; 0 is a normal step."""

    NAN_OBSERVATION = 1
    """The observation held a NaN: it was not used, the target is the safe one."""
    OUT_OF_RANGE = 2
    """A value lay outside its term's limits, or was infinite: not used, the target is the safe one."""
    RATE_LIMITED = 4
    """A target would have changed faster than allowed, and was held back."""
    NAN_TARGET = 8
    """The network gave no finite number: its state was kept, the target is the safe one."""
    DEADLINE_MISSED = 16
    """The step came too late, or there was no new observation for it."""
