"""Random numbers and permutations that do not depend on how many ranks share the worlds.

The worlds of a training are divided into shards of equal size, each with its own generator. A rank holds
one shard or several, so two ranks with one shard each draw what one rank with both draws.

Letters: T steps, N worlds of this rank, K shards of this rank, n = N / K worlds of a shard.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

from pi_incubator.saved_state import set_generator


class ShardedRandom:
    """One generator for each shard of worlds that this rank holds.

    Args:
        seed: of the training.
        purpose: what the numbers are for; other purposes get other numbers.
        shards: the indices of this rank's shards among those of all ranks.
        device: where the numbers are drawn.
    """

    def __init__(self, seed: int, purpose: str, shards: range, device: torch.device) -> None:
        self._generators = [
            torch.Generator(device).manual_seed(_seed_of(f"{seed}/{purpose}/{shard}")) for shard in shards
        ]

    @property
    def num_shards(self) -> int:
        """K."""
        return len(self._generators)

    def normal_(self, out: Tensor) -> None:
        """Fill `out` `[T, N, ...]` with standard normal numbers."""
        self._fill(out, Tensor.normal_)

    def uniform_(self, out: Tensor) -> None:
        """Fill `out` `[T, N, ...]` with numbers in `[0, 1)`."""
        self._fill(out, Tensor.uniform_)

    def _fill(self, out: Tensor, fill: Callable[..., Tensor]) -> None:
        """Let each shard's generator fill its part of `out` `[T, N, ...]`."""
        if self.num_shards == 1:
            fill(out, generator=self._generators[0])
            return
        for generator, part in zip(self._generators, out.chunk(self.num_shards, 1), strict=True):
            # Drawn into a contiguous tensor, so that the order of the numbers is that of a single shard.
            numbers = torch.empty_like(part, memory_format=torch.contiguous_format)
            part.copy_(fill(numbers, generator=generator))

    def permutations(self, length: int) -> list[Tensor]:
        """A permutation `[length]` of each shard, int64."""
        return [
            torch.randperm(length, generator=generator, device=generator.device)
            for generator in self._generators
        ]

    def integers(self, high: int, count: int) -> list[Tensor]:
        """`count` numbers in `[0, high)` for each shard, int64, with replacement."""
        return [
            torch.randint(high, (count,), generator=generator, device=generator.device)
            for generator in self._generators
        ]

    def uniform(self, count: int) -> list[Tensor]:
        """`count` numbers in `[0, 1)` for each shard, float64."""
        return [
            torch.rand(count, generator=generator, dtype=torch.float64, device=generator.device)
            for generator in self._generators
        ]

    def stratified(self, count: int) -> list[Tensor]:
        """For each shard `count` numbers in `[0, 1)`, float64: one in each `count`-th of it, in order."""
        strata = torch.arange(count, dtype=torch.float64, device=self._generators[0].device)
        return [numbers.add_(strata).div_(count) for numbers in self.uniform(count)]

    def state_dict(self) -> dict[str, Tensor]:
        return {str(index): generator.get_state() for index, generator in enumerate(self._generators)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for index, generator in enumerate(self._generators):
            set_generator(generator.set_state, state[str(index)].cpu())


def _seed_of(text: str) -> int:
    """63 bits that depend on every character of `text`."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
