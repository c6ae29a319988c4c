"""Normalization on a GPU: the moments of each program's share, merged by every program of a second kernel.

Nothing is atomic, so the result is the same bits every time.
"""

# mypy: disable-error-code="no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
NUM_WARPS = 4
# Enough programs to fill a GPU, few enough that merging their moments is one load.
MAX_PARTIALS = 512


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
