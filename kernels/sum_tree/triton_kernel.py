"""The sum tree on a GPU: one program updates, level by level; a lane a number samples.

Between two levels of an update all must be written. Within one program that is a barrier; among many it would
be a launch a level, which takes longer than one program takes for thousands of priorities.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.sum_tree import FAN_OUT, first_leaf, level_sizes, make_outputs

UPDATE_BLOCK, UPDATE_WARPS = 512, 16
SAMPLE_BLOCK, SAMPLE_WARPS = 32, 2


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
def _load_children(tree_ptr, below, entry, inside, length, FAN_OUT: tl.constexpr):
    """`[BLOCK, 16]`, of the level that begins at `below`; zero behind the last leaf."""
    place = below + FAN_OUT * entry[:, None] + tl.arange(0, FAN_OUT)[None, :]
    return tl.load(tree_ptr + place, mask=inside[:, None] & (place < length), other=0.0)


@triton.jit
def _add_pairs(values, BLOCK: tl.constexpr, WIDTH: tl.constexpr):
    """`[BLOCK, 2 WIDTH]` -> `[BLOCK, WIDTH]`."""
    left, right = tl.split(tl.reshape(values, (BLOCK, WIDTH, 2)))
    return left + right


@triton.jit
def _add_children(tree_ptr, below, level, entry, inside, length, BLOCK: tl.constexpr, FAN_OUT: tl.constexpr):
    sums = _load_children(tree_ptr, below, entry, inside, length, FAN_OUT)
    sums = _add_pairs(_add_pairs(sums, BLOCK, 8), BLOCK, 4)
    sums = tl.reshape(_add_pairs(_add_pairs(sums, BLOCK, 2), BLOCK, 1), (BLOCK,))
    tl.store(tree_ptr + level + entry, sums, mask=inside)


@triton.jit
def update_kernel(
    tree_ptr,
    index_ptr,
    priority_ptr,
    length,
    first_leaf,
    size,
    BLOCK: tl.constexpr,
    FAN_OUT: tl.constexpr,
):
    capacity = length - first_leaf
    _write_leaves(tree_ptr + first_leaf, index_ptr, priority_ptr, size, capacity, BLOCK)
    below = first_leaf
    num = capacity
    shift = 4
    while below > 0:
        num = tl.cdiv(num, FAN_OUT)
        level = below - tl.cdiv(num, FAN_OUT) * FAN_OUT
        begin = 0
        if num > size:
            while begin < size:
                _, index, _, fits = _load(index_ptr, priority_ptr, begin, size, capacity, BLOCK)
                _add_children(tree_ptr, below, level, index >> shift, fits, length, BLOCK, FAN_OUT)
                begin += BLOCK
        else:
            # Fewer entries than changes: all of them.
            while begin < num:
                n = begin + tl.arange(0, BLOCK)
                _add_children(tree_ptr, below, level, n, n < num, length, BLOCK, FAN_OUT)
                begin += BLOCK
        tl.debug_barrier()
        below = level
        shift += 4


@triton.jit
def _level_at(capacity, first_leaf, height, FAN_OUT: tl.constexpr):
    """Where the level begins that is `height` above the leaves."""
    begin = first_leaf
    num = capacity
    step = 0
    while step < height:
        num = tl.cdiv(num, FAN_OUT)
        begin -= tl.cdiv(num, FAN_OUT) * FAN_OUT
        step += 1
    return begin


@triton.jit
def sample_kernel(
    tree_ptr,
    uniform_ptr,
    index_ptr,
    probability_ptr,
    length,
    first_leaf,
    num_levels,
    size,
    BLOCK: tl.constexpr,
    FAN_OUT: tl.constexpr,
):
    b = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = b < size
    child_of = tl.arange(0, FAN_OUT)[None, :]
    total = tl.load(tree_ptr)
    mass = tl.load(uniform_ptr + b, mask=inside, other=0.0).to(tl.float64) * total
    mass = tl.where(mass >= 0.0, mass, 0.0)  # NaN too
    entry = tl.zeros([BLOCK], tl.int32)
    height = num_levels - 2
    while height >= 0:
        below = _level_at(length - first_leaf, first_leaf, height, FAN_OUT)
        values = _load_children(tree_ptr, below, entry, inside, length, FAN_OUT)
        sums = tl.cumsum(values.to(tl.float64), axis=1)
        # Where sums were rounded, the mass alone could lead behind the last child above zero.
        last = tl.max(tl.where(values > 0.0, child_of, 0), axis=1)
        child = tl.minimum(tl.sum((mass[:, None] >= sums).to(tl.int32), axis=1), last)
        mass -= tl.max(tl.where(child_of < child[:, None], sums, 0.0), axis=1)
        entry = FAN_OUT * entry + child
        height -= 1
    tl.store(index_ptr + b, entry.to(tl.int64), mask=inside)
    priority = tl.load(tree_ptr + first_leaf + entry, mask=inside, other=0.0)
    tl.store(probability_ptr + b, priority / total, mask=inside)


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
            FAN_OUT=FAN_OUT,
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
            len(level_sizes(len(tree) - first_leaf(tree))),
            len(uniform),
            BLOCK=SAMPLE_BLOCK,
            FAN_OUT=FAN_OUT,
            num_warps=SAMPLE_WARPS,
        )
    return index, probability
