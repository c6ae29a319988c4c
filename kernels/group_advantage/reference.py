"""Advantages relative to a group in plain torch: what the other implementations must equal."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels._checks import computed_in


@torch.no_grad()
def group_advantage(
    reward: Tensor, ids: Tensor | None, order: Tensor | None, size: int, mask: Tensor | None, eps: float
) -> Tensor:
    """See `kernels.group_advantage.group_advantage`.

    Args:
        reward: `[T, N]`.
        ids: `[N]`, sorted, or None where `size` neighbours are a group.
        order: `[N]` int64, the world that has each of `ids`.
        size: worlds in a group, if there are no ids.
        mask: `[T, N]` or None.
        eps: added to the standard deviation.
    """
    dtype, num_worlds = reward.dtype, reward.shape[1]
    reward = reward.to(computed_in(dtype))
    if ids is None or order is None:
        group = torch.arange(num_worlds, device=reward.device) // size
    else:
        group = torch.zeros_like(order)  # [N], numbered from 0 in the order of their ids
        group[order[1:]] = (ids[1:] != ids[:-1]).cumsum(0)
    kept = torch.ones_like(reward, dtype=torch.bool) if mask is None else mask

    def total(x: Tensor) -> Tensor:
        """Sum of `[T, N]` over each group, for each world: `[N]`."""
        return reward.new_zeros(num_worlds).index_add_(0, group, x.sum(0))[group]

    count = total(kept.to(reward.dtype))
    # Relative to one of them, the mean of equal rewards is theirs without rounding.
    highest = torch.where(kept, reward, -torch.inf).amax(0)
    pivot = torch.full_like(highest, -torch.inf).scatter_reduce_(0, group, highest, "amax")[group]
    relative = torch.where(kept, reward - pivot, 0.0)
    deviation = torch.where(kept, relative - total(relative) / count.clamp(min=1), 0.0)
    std = (total(deviation.square()) / (count - 1).clamp(min=1)).sqrt()
    return (deviation / (std + eps)).to(dtype)
