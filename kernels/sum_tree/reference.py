"""The sum tree in plain torch: what the other implementations must equal."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.sum_tree import first_leaf


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
    entry = index + first_leaf(tree)
    tree[entry] = priority[last]
    for _ in range(first_leaf(tree).bit_length() - 1):
        entry = entry // 2
        left, right = _children(tree, entry)
        tree[entry] = left + right


@torch.no_grad()
def sample(tree: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """See `kernels.sum_tree.sample`."""
    fits = (uniform >= 0) & (uniform <= 1)
    if not tree[1] > 0 or not fits.all():
        refuse_sample(tree, uniform, int(fits.int().argmin()))
    mass = uniform.double() * tree[1].double()  # [B], of what is left of the wanted leaf, within the subtree
    entry = torch.ones_like(uniform, dtype=torch.int64)
    for _ in range(first_leaf(tree).bit_length() - 1):
        left, right = _children(tree, entry)
        # Where sums were rounded, the mass alone could lead into a subtree of zeros.
        turn_right = (right > 0) & ((left == 0) | (mass >= left))
        mass = torch.where(turn_right, mass - left, mass)
        entry = 2 * entry + turn_right
    return entry - first_leaf(tree), tree[entry] / tree[1]


def refuse_update(index: Tensor, priority: Tensor, capacity: int, b: int) -> None:
    """Say what is wrong with entry `b` of the batch."""
    if not 0 <= index[b] < capacity:
        raise ValueError(f"sum_tree: index must be from 0 to {capacity - 1}, got {index[b]} at {b}")
    raise ValueError(f"sum_tree: priority must be finite and not negative, got {priority[b]} at {b}")


def refuse_sample(tree: Tensor, uniform: Tensor, b: int) -> None:
    """Say that nothing can be sampled, or else what is wrong with number `b`."""
    if not tree[1] > 0:
        raise ValueError(f"sum_tree: tree must have a priority above zero to sample, its total is {tree[1]}")
    raise ValueError(f"sum_tree: uniform must be in [0, 1], got {uniform[b]} at {b}")


def _children(tree: Tensor, entry: Tensor) -> tuple[Tensor, Tensor]:
    """Both `[B]`; the last leaf may have no right neighbour."""
    right = 2 * entry + 1
    there = right < len(tree)
    return tree[2 * entry], torch.where(there, tree[torch.where(there, right, 0)], 0.0)
