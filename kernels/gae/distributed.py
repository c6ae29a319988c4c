"""Moments of advantages that several processes hold: gathered, merged, and the same bits everywhere."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def merge_over_group(moments: Tensor, eps: float, group: dist.ProcessGroup) -> Tensor:
    """The moments `[3]` of all advantages in `group` (Chan et al. 1983), from those of each process.

    Collective; no host synchronization where the group's backend needs none.
    """
    gathered = [torch.empty_like(moments) for _ in range(dist.get_world_size(group))]
    dist.all_gather(gathered, moments, group=group)
    mean, scale, count = torch.stack(gathered).double().unbind(1)  # each one a process
    spread = (1.0 / scale - eps).clamp(min=0.0).square() * (count - 1.0).clamp(min=0.0)
    total = count.sum()
    # One with no entries has a mean of nothing.
    mean = torch.where(count > 0, mean, 0.0)
    center = (count * mean).sum() / total.clamp(min=1.0)
    squares = torch.where(count > 0, spread + count * (mean - center).square(), 0.0).sum()
    std = (squares / (total - 1.0).clamp(min=1.0)).sqrt()
    return torch.stack((center, 1.0 / (std + eps), total)).to(moments.dtype)


def apply(advantage: Tensor, moments: Tensor, mask: Tensor | None) -> Tensor:
    """Normalize with given `moments`; where `mask` is false the result is 0."""
    normalized = (advantage - moments[0]) * moments[1]
    return normalized if mask is None else torch.where(mask, normalized, 0.0)
