"""Random numbers that belong to a world, not to its place in the batch.

Every draw is a hash of (world's key, how many times that world was reset, which stream, which lane), so a
trajectory depends on neither the number of worlds, nor the order of resets, nor the neighbours. There is no
hidden state to keep on the host, and a captured graph replays fresh numbers because the counter is a tensor.

A stream is what one draw of a step reads; two draws of one stream in one step give the same numbers. Tasks
name theirs. A name's stream is its CRC-32 above 2³², and the env's own streams are numbers below, so that no
name can meet one of those. Whether two names of one task meet is tested over all tasks.

The hash is splitmix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators").
"""

from __future__ import annotations

import math
import zlib
from typing import NamedTuple

import torch
from torch import Tensor

# Written as the signed numbers that these bit patterns are in int64, where torch's products wrap.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


OBSERVATION_NOISE, RANDOMIZATION, INITIAL_POSITION, INITIAL_VELOCITY = range(0x4000, 0x4004)
"""The env's own streams."""


@torch.compiler.assume_constant_result  # compiled code has the number built in
def stream(name: str) -> int:
    """The number of the stream called `name`."""
    return (1 << 32) + zlib.crc32(name.encode())


class Draws(NamedTuple):
    """One block of numbers a world; the same stream always gives the same numbers.

    A stream is a name, or one of the env's own numbers.
    """

    block: Tensor
    """`[N]` int64."""

    def uniform(self, name: str | int, width: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """`[N, width]` float64 numbers in [low, high) of the stream `name`; `width` below 65,536."""
        number = stream(name) if isinstance(name, str) else name
        lane = torch.arange(width, device=self.block.device) + (number << 16)  # [width]
        # Added to loaded numbers first, or Inductor multiplies without wrapping, at compile time.
        lane = (self.block[:, None] & 0) + lane  # [N, width]
        bits = _splitmix(self.block[:, None] + lane * _GOLDEN)  # [N, width]
        unit = _shift_right(bits, 11).double() * 2.0**-53
        return unit if (low, high) == (0.0, 1.0) else low + (high - low) * unit

    def normal(self, name: str | int, width: int) -> Tensor:
        """`[N, width]` float64 standard normal numbers of the stream `name`; `width` below 32,768."""
        return standard_normal(self.uniform(name, 2 * width))


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
