"""Several processes that train one policy together: who this one is, and what they add up.

Every rank simulates its own worlds. Gradients, moments and metrics are averaged over the ranks, so that all
hold the same weights. One process is a group of one, for which nothing is exchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from kernels.normalize.running import merge_moments


@dataclass(frozen=True)
class Distributed:
    """This process among those that train together."""

    rank: int = 0
    """From 0; rank 0 owns the run folder, the tracker and the console."""
    world_size: int = 1
    """How many processes there are."""

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The processes to exchange with; None where there is one."""
        return dist.group.WORLD if self.world_size > 1 else None

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the ranks; the tensor itself where there is one."""
        if self.world_size == 1:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    def mean(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The means over the ranks, exchanged as one buffer; all tensors have one dtype and device."""
        if self.world_size == 1:
            return list(tensors)
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        parts = (flat / self.world_size).split([tensor.numel() for tensor in tensors])
        return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]

    def merge_moments(self, moments: Tensor) -> Tensor:
        """Moments `[3, D]` of what all ranks have seen, from those of this rank (see kernels.normalize)."""
        if self.world_size == 1:
            return moments
        gathered = [torch.empty_like(moments) for _ in range(self.world_size)]
        dist.all_gather(gathered, moments)
        total = gathered[0]
        for other in gathered[1:]:
            merge_moments(total, other)
        return total
