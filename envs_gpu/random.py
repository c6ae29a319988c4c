"""Random numbers that belong to a world, not to its place in the batch.

Every draw is a hash of (world's key, how many times that world was reset, which draw, which lane), so a
trajectory depends on neither the number of worlds, nor the order of resets, nor the neighbours. There is no
hidden state to keep on the host, and a captured graph replays fresh numbers because the counter is a tensor.

The hash is splitmix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators").
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

# Written as the signed numbers that these bit patterns are in int64, where torch's products wrap.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


class Draws(NamedTuple):
    """One block of numbers a world; the same `draw` always gives the same numbers."""

    block: Tensor
    """`[N]` int64."""

    def uniform(self, draw: int, width: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """`[N, width]` float64 numbers in [low, high)."""
        lane = torch.arange(width, device=self.block.device) + (draw << 16)  # [width]
        # Added to loaded numbers first, or Inductor multiplies without wrapping, at compile time.
        lane = (self.block[:, None] & 0) + lane  # [N, width]
        bits = _splitmix(self.block[:, None] + lane * _GOLDEN)  # [N, width]
        unit = _shift_right(bits, 11).double() * 2.0**-53
        return unit if (low, high) == (0.0, 1.0) else low + (high - low) * unit

    def normal(self, draw: int, width: int) -> Tensor:
        """`[N, width]` float64 standard normal numbers."""
        return standard_normal(self.uniform(draw, 2 * width))


class WorldRandom:
    """One stream of random numbers a world.

    Args:
        seed: of the whole batch.
        num_worlds: N.
        device: where the numbers are drawn.
        first_world: identity of the batch's first world; ranks of a distributed run pass disjoint ranges.
    """

    def __init__(self, seed: int, num_worlds: int, device: torch.device, first_world: int = 0) -> None:
        world = torch.arange(first_world, first_world + num_worlds, dtype=torch.int64, device=device)
        self.key = _splitmix(_splitmix(torch.full_like(world, seed)) + world)  # [N]
        self.counter = torch.zeros_like(world)  # [N]

    def advance(self, mask: Tensor) -> None:
        """Move the worlds where `mask` `[N]` is true to their next block of numbers."""
        self.counter += mask

    def draws(self, step: Tensor | None = None) -> Draws:
        """The numbers of every world's episode, or of its control step `step` `[N]` int64."""
        return draws(self.key, self.counter, step)

    def state_dict(self) -> dict[str, Tensor]:
        return {"key": self.key.clone(), "counter": self.counter.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.key.copy_(state["key"])
        self.counter.copy_(state["counter"])


def draws(key: Tensor, counter: Tensor, step: Tensor | None = None) -> Draws:
    """What `WorldRandom.draws` gives, of the generator's `key` and `counter` `[N]`."""
    block = _splitmix(key + counter * _GOLDEN)  # [N]
    return Draws(block if step is None else _splitmix(block + _splitmix(step)))


def standard_normal(unit: Tensor) -> Tensor:
    """Uniform numbers `[..., 2 width]` -> standard normal ones `[..., width]` (Box and Muller 1958)."""
    first, second = unit.chunk(2, -1)
    return (-2.0 * torch.log1p(-first)).sqrt() * torch.cos(2.0 * math.pi * second)


def _shift_right(bits: Tensor, count: int) -> Tensor:
    """Logical shift of int64, whose own `>>` copies the sign."""
    return (bits >> count) & ((1 << (64 - count)) - 1)


def _splitmix(bits: Tensor) -> Tensor:
    bits = bits + _GOLDEN
    bits = (bits ^ _shift_right(bits, 30)) * _MIX_1
    bits = (bits ^ _shift_right(bits, 27)) * _MIX_2
    return bits ^ _shift_right(bits, 31)
