"""How one number of the domain randomization is drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from envs_gpu.errors import SettingError
from envs_gpu.random import standard_normal


class RandomizationError(SettingError):
    """A property that this model does not have was to be randomized; `field` without `randomization.`."""

    def __init__(self, field: str, value: object, problem: str, fix: str) -> None:
        super().__init__(f"randomization.{field}", value, problem, fix)


@dataclass(frozen=True)
class Draw:
    """How a number is drawn, when, and for which elements."""

    distribution: str = "uniform"
    """`uniform` or `log_uniform` from `low` to `high`, or `normal` with `mean` and `std`."""
    low: float = 0.0
    high: float = 0.0
    mean: float = 0.0
    std: float = 0.0
    per: str = "reset"
    """`reset`, or `interval`: also in the midst of an episode, on average every `interval_s`."""
    interval_s: float = 10.0
    names: str = "*"
    """Shell pattern of the elements' names; the others stay as the model has them."""
    shared: bool = False
    """One number for all elements of a world, or one for each."""

    @property
    def line(self) -> tuple[float, float]:
        """Offset and slope of the line on which numbers lie over the underlying ones.

        Those are uniform in [0, 1), or standard normal; of `log_uniform` it is the logarithm that lies on it.
        """
        if self.distribution == "normal":
            return self.mean, self.std
        low, high = self.low, self.high
        if self.distribution == "log_uniform":
            low, high = math.log(low), math.log(high)
        return low, high - low

    def num_lanes(self, width: int) -> int:
        """How many uniform numbers `width` numbers are made of."""
        return 2 * width if self.distribution == "normal" else width

    def numbers(self, unit: Tensor) -> Tensor:
        """Uniform numbers in [0, 1) `[n, lanes]` -> numbers of this distribution `[n, width]`."""
        offset, slope = self.line
        if self.distribution == "normal":
            unit = standard_normal(unit)
        numbers = offset + slope * unit
        return numbers.exp() if self.distribution == "log_uniform" else numbers
