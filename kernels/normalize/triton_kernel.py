"""Normalization on a GPU: the moments of each program's share, merged in a fixed order.

Nothing is atomic, so the result is the same bits every time. The moments of advantages are merged by every
program of a second kernel, which normalizes. Observations are normalized by what is known before them, so one
kernel reads them once, and a second, small one adds their moments to what is known.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
NUM_WARPS = 4
# Enough programs to fill a GPU, few enough that merging their moments is one load.
MAX_PARTIALS = 512
# Of observations: numbers a tile, and its columns at most.
TILE, MAX_COLUMNS = 1024, 16
# How many programs share their rows at most, and how many of them are merged at once, in how many columns.
MAX_PROGRAMS, MERGED, MERGED_COLUMNS = 256, 64, 8


@triton.jit
def moments_kernel(advantage_ptr, mask_ptr, partial_ptr, size, BLOCK: tl.constexpr):
    """Count, mean and sum of squared deviations of this program's blocks into `partial[3, programs]`."""
    program, num_programs = tl.program_id(0), tl.num_programs(0)
    count, mean, squares = 0.0, 0.0, 0.0
    for block in range(program, tl.cdiv(size, BLOCK), num_programs):
        i = tl.cast(block, tl.int64) * BLOCK + tl.arange(0, BLOCK)
        kept = i < size
        if mask_ptr is not None:
            kept = kept & tl.load(mask_ptr + i, mask=kept, other=0).to(tl.int1)
        advantage = tl.load(advantage_ptr + i, mask=kept, other=0.0)
        block_count = tl.sum(kept.to(tl.float32))
        block_size = tl.maximum(block_count, 1.0)
        block_mean = tl.sum(advantage) / block_size
        # Taken twice: rounded once, the mean of equal entries is not theirs, and noise is scaled up to 1.
        block_mean += tl.sum(tl.where(kept, advantage - block_mean, 0.0)) / block_size
        deviation = tl.where(kept, advantage - block_mean, 0.0)
        # Chan et al. 1983, eq. 2.1: merge the block into what was seen before it.
        shift = block_mean - mean
        share = block_count / tl.maximum(count + block_count, 1.0)
        squares += tl.sum(deviation * deviation) + shift * shift * count * share
        mean += shift * share
        count += block_count
    tl.store(partial_ptr + program, count)
    tl.store(partial_ptr + num_programs + program, mean)
    tl.store(partial_ptr + 2 * num_programs + program, squares)


@triton.jit
def normalize_kernel(
    advantage_ptr,
    mask_ptr,
    partial_ptr,
    out_ptr,
    size,
    num_partials,
    eps,
    BLOCK: tl.constexpr,
    PARTIALS: tl.constexpr,
):
    p = tl.arange(0, PARTIALS)
    counts = tl.load(partial_ptr + p, mask=p < num_partials, other=0.0)
    means = tl.load(partial_ptr + num_partials + p, mask=p < num_partials, other=0.0)
    squares = tl.load(partial_ptr + 2 * num_partials + p, mask=p < num_partials, other=0.0)
    count = tl.sum(counts)
    pivot = tl.max(means)
    mean = pivot + tl.sum(counts * (means - pivot)) / tl.maximum(count, 1.0)
    shift = means - mean
    variance = tl.sum(squares + counts * shift * shift) / tl.maximum(count - 1.0, 1.0)
    scale = 1.0 / (tl.sqrt(variance) + eps)

    i = tl.cast(tl.program_id(0), tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < size
    normalized = (tl.load(advantage_ptr + i, mask=inside) - mean) * scale
    if mask_ptr is not None:
        kept = tl.load(mask_ptr + i, mask=inside, other=0).to(tl.int1)
        normalized = tl.where(kept, normalized, 0.0)
    tl.store(out_ptr + i, normalized, mask=inside)


@triton.jit
def _divide(x, count):
    """`x / max(count, 1)` in float32, which suffices for deviations; in float64 it would be a subroutine."""
    return (x.to(tl.float32) / tl.maximum(count, 1.0).to(tl.float32)).to(tl.float64)


@triton.jit
def _merge(count, mean, squares, more, middle, found):
    """Moments that take in others (Chan, Golub and LeVeque 1983, eq. 2.1)."""
    total = count + more
    shift = middle - mean
    share = _divide(more, total)
    return total, mean + shift * share, squares + found + shift * shift * count * share


@triton.jit
def _tile_moments(x, kept):
    """Of each column, in float64; the tile itself is float32, relative to a number of the column."""
    count = tl.sum(kept.to(tl.float32), 0)
    size = tl.maximum(count, 1.0)
    pivot = tl.where(count > 0.0, tl.max(tl.where(kept, x, -float("inf")), 0), 0.0)
    middle = tl.sum(tl.where(kept, x - pivot[None, :], 0.0), 0) / size
    deviation = tl.where(kept, x - pivot[None, :] - middle[None, :], 0.0)
    # What rounding has left of the mean.
    rest = tl.sum(deviation, 0) / size
    deviation = tl.where(kept, deviation - rest[None, :], 0.0)
    mean = pivot.to(tl.float64) + middle.to(tl.float64) + rest.to(tl.float64)
    return count.to(tl.float64), mean, tl.sum(deviation * deviation, 0).to(tl.float64)


@triton.jit
def _load_moments(moments_ptr, column, width):
    there = column < width
    count = tl.load(moments_ptr + column, mask=there, other=0.0)
    mean = tl.load(moments_ptr + width + column, mask=there, other=0.0)
    return count, mean, tl.load(moments_ptr + 2 * width + column, mask=there, other=0.0)


@triton.jit
def running_kernel(
    observation_ptr,
    mask_ptr,
    moments_ptr,
    out_ptr,
    partial_ptr,
    num_rows,
    width,
    clip,
    min_std,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Without `out_ptr` nothing is normalized; without `partial_ptr` the moments are frozen."""
    program, num_programs = tl.program_id(0), tl.num_programs(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    there = column < width
    count, mean, squares = _load_moments(moments_ptr, column, width)
    # The mean in two float32: what is near it loses nothing.
    center = mean.to(tl.float32)
    rest = (mean - center).to(tl.float32)
    std = tl.sqrt(_divide(squares, count).to(tl.float32))
    std = tl.where(count > 0.0, tl.where(std < min_std, min_std, std), 1.0)

    count, mean = tl.zeros([COLUMNS], tl.float64), tl.zeros([COLUMNS], tl.float64)
    squares = tl.zeros([COLUMNS], tl.float64)
    for block in range(program, tl.cdiv(num_rows, ROWS), num_programs):
        row = block * ROWS + tl.arange(0, ROWS)
        kept = row < num_rows
        inside = kept[:, None] & there[None, :]
        i = row[:, None].to(tl.int64) * width + column[None, :]
        x = tl.load(observation_ptr + i, mask=inside, other=0.0).to(tl.float32)
        if out_ptr is not None:
            z = (x - center[None, :] - rest[None, :]) / std[None, :]
            z = tl.where(z > clip, clip, tl.where(z < -clip, -clip, z))
            tl.store(out_ptr + i, z, mask=inside)
        if partial_ptr is not None:
            if mask_ptr is not None:
                kept = kept & tl.load(mask_ptr + row, mask=kept, other=0).to(tl.int1)
            more, middle, found = _tile_moments(x, kept[:, None] & there[None, :])
            count, mean, squares = _merge(count, mean, squares, more, middle, found)

    if partial_ptr is not None:
        partial_ptr += program * width + column
        tl.store(partial_ptr, count, mask=there)
        tl.store(partial_ptr + num_programs * width, mean, mask=there)
        tl.store(partial_ptr + 2 * num_programs * width, squares, mask=there)


@triton.jit
def merge_kernel(moments_ptr, partial_ptr, num_programs, width, MERGED: tl.constexpr, COLUMNS: tl.constexpr):
    """The moments take in `partial[3, programs, D]`."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    there = column < width
    count, mean, squares = _load_moments(moments_ptr, column, width)
    size = num_programs * width
    for first in range(0, num_programs, MERGED):
        program = first + tl.arange(0, MERGED)[:, None]
        inside = (program < num_programs) & there[None, :]
        i = program * width + column[None, :]
        counts = tl.load(partial_ptr + i, mask=inside, other=0.0)
        means = tl.load(partial_ptr + size + i, mask=inside, other=0.0)
        found = tl.load(partial_ptr + 2 * size + i, mask=inside, other=0.0)
        more = tl.sum(counts, 0)
        pivot = tl.max(tl.where(counts > 0.0, means, -float("inf")), 0)
        pivot = tl.where(more > 0.0, pivot, 0.0)
        middle = pivot + _divide(tl.sum(counts * (means - pivot[None, :]), 0), more)
        shift = means - middle[None, :]
        found = tl.sum(found + counts * shift * shift, 0)
        count, mean, squares = _merge(count, mean, squares, more, middle, found)
    tl.store(moments_ptr + column, count, mask=there)
    tl.store(moments_ptr + width + column, mean, mask=there)
    tl.store(moments_ptr + 2 * width + column, squares, mask=there)


def normalize_advantage(advantage: Tensor, eps: float, mask: Tensor | None) -> Tensor:
    """See `kernels.normalize.normalize_advantage`; contiguous tensors, no host synchronization."""
    size = advantage.numel()
    num_blocks = triton.cdiv(size, BLOCK)
    num_partials = min(num_blocks, MAX_PARTIALS)
    partial = advantage.new_empty(3, num_partials)
    out = torch.empty_like(advantage)
    options = {"num_warps": NUM_WARPS, "enable_fp_fusion": True}
    with torch.cuda.device_of(advantage):
        moments_kernel[(num_partials,)](advantage, mask, partial, size, BLOCK=BLOCK, **options)
        normalize_kernel[(num_blocks,)](
            advantage,
            mask,
            partial,
            out,
            size,
            num_partials,
            eps,
            BLOCK=BLOCK,
            PARTIALS=triton.next_power_of_2(num_partials),
            **options,
        )
    return out


def running_normalize(
    observation: Tensor, moments: Tensor, update: bool, mask: Tensor | None, clip: float, min_std: float
) -> Tensor:
    """See `kernels.normalize.running_normalize`; contiguous `[N, D]`, no host synchronization."""
    out = torch.empty_like(observation)
    _run(observation, moments, out, update, mask, clip, min_std)
    return out


def gather_moments(observation: Tensor, moments: Tensor, mask: Tensor | None) -> None:
    """See `kernels.normalize.gather_moments`; contiguous `[N, D]`, no host synchronization."""
    _run(observation, moments, None, True, mask, 1.0, 1.0)


def tile(width: int) -> dict[str, int]:
    """Rows and columns of a tile, for which the kernel is compiled."""
    columns = min(triton.next_power_of_2(width), MAX_COLUMNS)
    return {"ROWS": TILE // columns, "COLUMNS": columns}


def _run(
    observation: Tensor,
    moments: Tensor,
    out: Tensor | None,
    update: bool,
    mask: Tensor | None,
    clip: float,
    min_std: float,
) -> None:
    num_rows, width = observation.shape
    constants = tile(width)
    num_programs = min(triton.cdiv(num_rows, constants["ROWS"]), MAX_PROGRAMS)
    grid = (num_programs, triton.cdiv(width, constants["COLUMNS"]))
    partial = moments.new_empty(3, num_programs, width) if update else None
    options = {"num_warps": NUM_WARPS, "enable_fp_fusion": True}
    with torch.cuda.device_of(observation):
        running_kernel[grid](
            observation, mask, moments, out, partial, num_rows, width, clip, min_std, **constants, **options
        )
        if update:
            merge_kernel[(triton.cdiv(width, MERGED_COLUMNS),)](
                moments, partial, num_programs, width, MERGED=MERGED, COLUMNS=MERGED_COLUMNS, **options
            )
