"""The sum tree in plain torch: what the other implementations must equal."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kernels.sum_tree import FAN_OUT, first_leaf, level_sizes


@torch.no_grad()
def update(tree: Tensor, index: Tensor, priority: Tensor) -> None:
    """See `kernels.sum_tree.update`."""
    capacity = len(tree) - first_leaf(tree)
    fits = (index >= 0) & (index < capacity) & (priority >= 0) & (priority < torch.inf)
    if not fits.all():
        refuse_update(index, priority, capacity, int(fits.int().argmin()))
    index, order = index.sort(stable=True)
    # All entries of an index write what the last one of them says, so that their order is of no matter.
    last = order[torch.searchsorted(index, index, right=True) - 1]
    *inner, leaves = _levels(tree)
    leaves[index] = priority[last]
    below = leaves
    for level in reversed(inner):
        index = index // FAN_OUT
        level[index] = _sum(_children(below, index))
        below = level


@torch.no_grad()
def sample(tree: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """See `kernels.sum_tree.sample`."""
    fits = (uniform >= 0) & (uniform <= 1)
    if not tree[0] > 0 or not fits.all():
        refuse_sample(tree, uniform, int(fits.int().argmin()))
    mass = uniform.double() * tree[0].double()  # [B], of what is left of the wanted leaf, within the subtree
    entry = torch.zeros_like(uniform, dtype=torch.int64)
    for level in list(_levels(tree))[1:]:
        children = _children(level, entry)
        sums = children.double().cumsum(1)
        # Where sums were rounded, the mass alone could lead behind the last child above zero.
        last = (children > 0).int().cumsum(1).argmax(1)
        child = torch.minimum((mass.unsqueeze(1) >= sums).sum(1), last)
        before = torch.nn.functional.pad(sums, (1, 0)).gather(1, child.unsqueeze(1)).squeeze(1)
        mass, entry = mass - before, FAN_OUT * entry + child
    return entry, tree[first_leaf(tree) + entry] / tree[0]


def refuse_update(index: Tensor, priority: Tensor, capacity: int, b: int) -> None:
    """Say what is wrong with entry `b` of the batch."""
    if not 0 <= index[b] < capacity:
        raise ValueError(f"sum_tree: index must be from 0 to {capacity - 1}, got {index[b]} at {b}")
    raise ValueError(f"sum_tree: priority must be finite and not negative, got {priority[b]} at {b}")


def refuse_sample(tree: Tensor, uniform: Tensor, b: int) -> None:
    """Say that nothing can be sampled, or else what is wrong with number `b`."""
    if not tree[0] > 0:
        raise ValueError(f"sum_tree: tree must have a priority above zero to sample, its total is {tree[0]}")
    raise ValueError(f"sum_tree: uniform must be in [0, 1], got {uniform[b]} at {b}")


def _levels(tree: Tensor) -> Iterator[Tensor]:
    """Views of the levels from the root to the leaves, without their padding."""
    begin = 0
    for size in level_sizes(len(tree) - first_leaf(tree)):
        yield tree[begin : begin + size]
        begin += -(-size // FAN_OUT) * FAN_OUT


def _children(level: Tensor, parent: Tensor) -> Tensor:
    """`[B, 16]`, the entries of `level` below `parent` `[B]`; zero behind the end."""
    index = FAN_OUT * parent.unsqueeze(1) + torch.arange(FAN_OUT, device=parent.device)
    there = index < len(level)
    return torch.where(there, level[torch.where(there, index, 0)], 0.0)


def _sum(children: Tensor) -> Tensor:
    """`[B]`, of `[B, 16]`, added in pairs."""
    while children.shape[1] > 1:
        children = children[:, ::2] + children[:, 1::2]
    return children.squeeze(1)
