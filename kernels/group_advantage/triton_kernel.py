"""Advantages relative to a group on a GPU: one program a group, nothing atomic, the same bits every time."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 128
NUM_WARPS = 1


@triton.jit
def _load(reward_ptr, mask_ptr, order_ptr, block, begin, width, num_steps, num_worlds, BLOCK: tl.constexpr):
    """A block of the group's entries, step by step: index, reward, and whether it counts."""
    entry = tl.cast(block, tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = entry < num_steps * width
    world = begin + entry % width
    if order_ptr is not None:
        world = tl.load(order_ptr + world, mask=inside, other=0)
    i = entry // width * num_worlds + world
    kept = inside
    if mask_ptr is not None:
        kept = kept & tl.load(mask_ptr + i, mask=inside, other=0).to(tl.int1)
    return i, inside, tl.load(reward_ptr + i, mask=kept, other=0.0).to(tl.float32), kept


@triton.jit
def group_kernel(
    reward_ptr,
    mask_ptr,
    order_ptr,
    end_ptr,
    out_ptr,
    num_steps,
    num_worlds,
    size,
    eps,
    BLOCK: tl.constexpr,
):
    program = tl.cast(tl.program_id(0), tl.int64)
    if end_ptr is None:
        begin, end = program * size, (program + 1) * size
    else:
        # A program for each world in the order of the groups; the first of each group does its work.
        begin, end = program, tl.load(end_ptr + program)
        if begin > 0:
            end = tl.where(tl.load(end_ptr + begin - 1) == end, begin, end)
    width = end - begin
    num_blocks = tl.cdiv(num_steps * width, BLOCK)
    count, pivot, total, squares = 0.0, -float("inf"), 0.0, 0.0
    for block in range(num_blocks):
        _, _, reward, kept = _load(
            reward_ptr, mask_ptr, order_ptr, block, begin, width, num_steps, num_worlds, BLOCK
        )
        count += tl.sum(kept.to(tl.float32))
        pivot = tl.maximum(pivot, tl.max(tl.where(kept, reward, -float("inf"))))
    # Relative to one of them, the mean of equal rewards is theirs without rounding.
    for block in range(num_blocks):
        _, _, reward, kept = _load(
            reward_ptr, mask_ptr, order_ptr, block, begin, width, num_steps, num_worlds, BLOCK
        )
        total += tl.sum(tl.where(kept, reward - pivot, 0.0))
    mean = total / tl.maximum(count, 1.0)
    for block in range(num_blocks):
        _, _, reward, kept = _load(
            reward_ptr, mask_ptr, order_ptr, block, begin, width, num_steps, num_worlds, BLOCK
        )
        deviation = tl.where(kept, reward - pivot - mean, 0.0)
        squares += tl.sum(deviation * deviation)
    scale = 1.0 / (tl.sqrt(squares / tl.maximum(count - 1.0, 1.0)) + eps)
    for block in range(num_blocks):
        i, inside, reward, kept = _load(
            reward_ptr, mask_ptr, order_ptr, block, begin, width, num_steps, num_worlds, BLOCK
        )
        tl.store(out_ptr + i, tl.where(kept, (reward - pivot - mean) * scale, 0.0), mask=inside)


def group_advantage(
    reward: Tensor, ids: Tensor | None, order: Tensor | None, size: int, mask: Tensor | None, eps: float
) -> Tensor:
    """See `kernels.group_advantage.reference`; contiguous tensors on one CUDA device, no synchronization."""
    num_steps, num_worlds = reward.shape
    end = None if ids is None else torch.searchsorted(ids, ids, right=True)
    num_programs = num_worlds // size if ids is None else num_worlds
    out = torch.empty_like(reward)
    with torch.cuda.device_of(reward):
        group_kernel[(num_programs,)](
            reward,
            mask,
            order,
            end,
            out,
            num_steps,
            num_worlds,
            size,
            eps,
            BLOCK=BLOCK,
            num_warps=NUM_WARPS,
            enable_fp_fusion=True,
        )
    return out
