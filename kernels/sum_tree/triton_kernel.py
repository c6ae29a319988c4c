"""The sum tree on a GPU: one program updates, level by level; a lane a number samples.

Between two levels of an update all must be written. Within one program that is a barrier; among many it would
be a launch a level, and twenty launches take longer than one program takes for thousands of priorities.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.sum_tree import first_leaf, make_outputs

UPDATE_BLOCK, UPDATE_WARPS = 1024, 16
SAMPLE_BLOCK, SAMPLE_WARPS = 64, 2


@triton.jit
def _load(index_ptr, priority_ptr, begin, size, capacity, BLOCK: tl.constexpr):
    """A block of the batch: its positions, leaves and priorities, and which of them are not to be skipped."""
    b = begin + tl.arange(0, BLOCK)
    index = tl.load(index_ptr + b, mask=b < size, other=-1)
    priority = tl.load(priority_ptr + b, mask=b < size, other=0.0)
    fits = (index >= 0) & (index < capacity) & (priority >= 0.0) & (priority < float("inf"))
    return b, index.to(tl.int32), priority, fits


@triton.jit
def _write_leaves(leaf_ptr, index_ptr, priority_ptr, size, capacity, BLOCK: tl.constexpr):
    """Of one index the last priority stays: the leaf itself holds the highest position that names it, until
    the position that finds itself there replaces it by its priority.
    """
    vote_ptr = leaf_ptr.to(tl.pointer_type(tl.int32))
    begin = 0
    while begin < size:
        b, index, _, fits = _load(index_ptr, priority_ptr, begin, size, capacity, BLOCK)
        tl.store(vote_ptr + index, -1, mask=fits)
        begin += BLOCK
    tl.debug_barrier()
    begin = 0
    while begin < size:
        b, index, _, fits = _load(index_ptr, priority_ptr, begin, size, capacity, BLOCK)
        tl.atomic_max(vote_ptr + index, b, mask=fits, sem="relaxed")
        begin += BLOCK
    tl.debug_barrier()
    begin = 0
    while begin < size:
        b, index, priority, fits = _load(index_ptr, priority_ptr, begin, size, capacity, BLOCK)
        # Past the L1 cache, which an atomic does not write to.
        last = tl.load(vote_ptr + index, mask=fits, other=-1, volatile=True) == b
        # Those that lose are behind the one that wins, so they have looked before it writes.
        tl.debug_barrier()
        tl.store(leaf_ptr + index, priority, mask=fits & last)
        begin += BLOCK
    tl.debug_barrier()


@triton.jit
def _add_children(tree_ptr, entry, inside, length):
    left = tl.load(tree_ptr + 2 * entry, mask=inside & (2 * entry < length), other=0.0)
    right = tl.load(tree_ptr + 2 * entry + 1, mask=inside & (2 * entry + 1 < length), other=0.0)
    tl.store(tree_ptr + entry, left + right, mask=inside)


@triton.jit
def update_kernel(tree_ptr, index_ptr, priority_ptr, length, first_leaf, size, BLOCK: tl.constexpr):
    capacity = length - first_leaf
    _write_leaves(tree_ptr + first_leaf, index_ptr, priority_ptr, size, capacity, BLOCK)
    width = first_leaf // 2
    height = 1
    while width > 0:
        begin = 0
        if width > size:
            while begin < size:
                _, index, _, fits = _load(index_ptr, priority_ptr, begin, size, capacity, BLOCK)
                _add_children(tree_ptr, (first_leaf + index) >> height, fits, length)
                begin += BLOCK
        else:
            # Fewer entries than changes: all of them.
            while begin < width:
                n = begin + tl.arange(0, BLOCK)
                _add_children(tree_ptr, width + n, n < width, length)
                begin += BLOCK
        tl.debug_barrier()
        width //= 2
        height += 1


@triton.jit
def sample_kernel(
    tree_ptr, uniform_ptr, index_ptr, probability_ptr, length, first_leaf, size, BLOCK: tl.constexpr
):
    b = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = b < size
    total = tl.load(tree_ptr + 1)
    mass = tl.load(uniform_ptr + b, mask=inside, other=0.0).to(tl.float64) * total
    entry = tl.full([BLOCK], 1, tl.int32)
    level = 1
    while level < first_leaf:
        child = 2 * entry
        left = tl.load(tree_ptr + child)
        right = tl.load(tree_ptr + child + 1, mask=child + 1 < length, other=0.0)
        # Where sums were rounded, the mass alone could lead into a subtree of zeros.
        turn_right = (right > 0.0) & ((left == 0.0) | (mass >= left))
        mass = tl.where(turn_right, mass - left, mass)
        entry = child + turn_right.to(tl.int32)
        level *= 2
    tl.store(index_ptr + b, (entry - first_leaf).to(tl.int64), mask=inside)
    tl.store(probability_ptr + b, tl.load(tree_ptr + entry) / total, mask=inside)


def update(tree: Tensor, index: Tensor, priority: Tensor) -> None:
    """See `kernels.sum_tree.update`; contiguous tensors on one CUDA device, no host synchronization."""
    with torch.cuda.device_of(tree):
        update_kernel[(1,)](
            tree,
            index,
            priority,
            len(tree),
            first_leaf(tree),
            len(index),
            BLOCK=UPDATE_BLOCK,
            num_warps=UPDATE_WARPS,
        )


def sample(tree: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """See `kernels.sum_tree.sample`; contiguous tensors on one CUDA device, no host synchronization."""
    index, probability = make_outputs(uniform)
    with torch.cuda.device_of(tree):
        sample_kernel[(triton.cdiv(len(uniform), SAMPLE_BLOCK),)](
            tree,
            uniform,
            index,
            probability,
            len(tree),
            first_leaf(tree),
            len(uniform),
            BLOCK=SAMPLE_BLOCK,
            num_warps=SAMPLE_WARPS,
        )
    return index, probability
