"""Generalized advantage estimation on a GPU, with the moments of the advantages in the same launch.

A batch that fits on the GPU at once, one tile of steps and worlds a program: a parallel scan over the steps,
a barrier behind which every program merges the moments that all have found, and the normalized advantages are
written straight from the registers: one launch.

Else, many worlds: one program a block of worlds, backwards over the steps. Few worlds and many steps, or time
innermost in memory: one program some worlds, and a parallel scan over chunks of steps. The program that ends
last merges the moments, and a second launch normalizes, unless the moments are handed on to a loss that reads
the advantages anyway.

Nothing is summed in an order that changes, so the bits are the same every time, and no moment takes a host
sync.
"""

# mypy: disable-error-code="no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels._grid_barrier import barrier_word, grid_barrier, programs_at_once

# Four worlds a thread: the flags of one thread then fill the 4 bytes that an asynchronous copy needs.
BLOCK = 128
NUM_WARPS = 1
# Steps in flight. The recurrence itself is two operations; the time goes into waiting for memory.
NUM_STAGES = 8
# Steps of a scan, and worlds of a program that scans.
CHUNK, FEW = 128, 8
SCAN_WARPS = 4
# Below so many worlds the columns do not fill a GPU.
FEW_WORLDS = 1024
APPLY_BLOCK, APPLY_WARPS = 1024, 4
# Entries of a program that keeps them on chip, and its steps at most: with 8 worlds a row fills a sector.
# Bounded in registers, four such programs share a multiprocessor.
TILE, MAX_TILE_STEPS = 1024, 128
TILE_WARPS, TILE_REGISTERS = 4, 128
# So many that merging their moments is one load.
MAX_TILES = 1024


@triton.jit
def _merge(count, mean, squares):
    """The moments of a union, of vectors of moments (Chan, Golub and LeVeque 1983)."""
    total = tl.sum(count)
    pivot = tl.max(tl.where(count > 0, mean, -float("inf")))
    pivot = tl.where(total > 0, pivot, 0.0)
    center = pivot + tl.sum(tl.where(count > 0, count * (mean - pivot), 0.0)) / tl.maximum(total, 1.0)
    shift = tl.where(count > 0, mean - center, 0.0)
    return total, center, tl.sum(squares + count * shift * shift)


@triton.jit
def _note(partial_ptr, count, mean, squares):
    """This program's moments, where no other writes."""
    program, num_programs = tl.program_id(0), tl.num_programs(0)
    tl.store(partial_ptr + program, count)
    tl.store(partial_ptr + num_programs + program, mean)
    tl.store(partial_ptr + 2 * num_programs + program, squares)


@triton.jit
def _merge_noted(partial_ptr, first, PARTIALS: tl.constexpr):
    """The moments of the programs from `first` on, past the L1 cache."""
    num_programs = tl.num_programs(0)
    p = first + tl.arange(0, PARTIALS)
    inside = p < num_programs
    counts = tl.load(partial_ptr + p, mask=inside, other=0.0, volatile=True)
    means = tl.load(partial_ptr + num_programs + p, mask=inside, other=0.0, volatile=True)
    spreads = tl.load(partial_ptr + 2 * num_programs + p, mask=inside, other=0.0, volatile=True)
    return _merge(counts, means, spreads)


@triton.jit
def _scale(total, spread, eps):
    variance = tl.maximum(spread, 0.0) / tl.maximum(total - 1.0, 1.0)
    return 1.0 / (tl.sqrt(variance) + eps)


@triton.jit
def _report(moments_ptr, total, center, scale):
    tl.store(moments_ptr, center)
    tl.store(moments_ptr + 1, scale)
    tl.store(moments_ptr + 2, total)


@triton.jit
def _finish(count, mean, squares, partial_ptr, ticket_ptr, moments_ptr, eps, PARTIALS: tl.constexpr):
    """Note this program's moments; the last one to come here merges all of them."""
    _note(partial_ptr, count, mean, squares)
    tl.debug_barrier()
    if tl.atomic_add(ticket_ptr, 1, sem="acq_rel") == tl.num_programs(0) - 1:
        total, center, spread = 0.0, 0.0, 0.0
        for first in range(0, tl.num_programs(0), PARTIALS):
            more, middle, found = _merge_noted(partial_ptr, first, PARTIALS)
            shift = middle - center
            share = more / tl.maximum(total + more, 1.0)
            spread += found + shift * shift * total * share
            center += shift * share
            total += more
        _report(moments_ptr, total, center, _scale(total, spread, eps))


@triton.jit
def gae_kernel(
    reward_ptr,
    value_ptr,
    next_value_ptr,
    terminated_ptr,
    done_ptr,
    mask_ptr,
    advantage_ptr,
    value_target_ptr,
    partial_ptr,
    ticket_ptr,
    moments_ptr,
    num_steps,
    num_worlds,
    gamma,
    decay,
    eps,
    BLOCK: tl.constexpr,
    NUM_STAGES: tl.constexpr,
    PARTIALS: tl.constexpr,
):
    """Contiguous `[T, N]`."""
    world = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = world < num_worlds
    advantage = tl.zeros([BLOCK], tl.float32)
    count, mean, squares = (
        tl.zeros([BLOCK], tl.float32),
        tl.zeros([BLOCK], tl.float32),
        tl.zeros([BLOCK], tl.float32),
    )
    for step in tl.range(0, num_steps, num_stages=NUM_STAGES):
        i = tl.cast(num_steps - 1 - step, tl.int64) * num_worlds + world
        reward = tl.load(reward_ptr + i, mask=valid).to(tl.float32)
        value = tl.load(value_ptr + i, mask=valid).to(tl.float32)
        next_value = tl.load(next_value_ptr + i, mask=valid).to(tl.float32)
        terminated = tl.load(terminated_ptr + i, mask=valid)
        done = tl.load(done_ptr + i, mask=valid)
        # `where`, because zero times the NaN of a diverged world would be NaN.
        delta = reward + tl.where(terminated, 0.0, gamma * next_value) - value
        advantage = delta + tl.where(done, 0.0, decay * advantage)
        tl.store(advantage_ptr + i, advantage, mask=valid)
        if value_target_ptr is not None:
            tl.store(value_target_ptr + i, advantage + value, mask=valid)
        kept = _kept(mask_ptr, i, valid)
        # Welford 1962, in every lane.
        count += kept.to(tl.float32)
        change = advantage - mean
        moved = mean + change / tl.maximum(count, 1.0)
        squares = tl.where(kept, squares + change * (advantage - moved), squares)
        mean = tl.where(kept, moved, mean)
    total, center, spread = _merge(count, mean, squares)
    _finish(total, center, spread, partial_ptr, ticket_ptr, moments_ptr, eps, PARTIALS)


@triton.jit
def _compose(coefficient, number, later_coefficient, later_number):
    """`x -> number + coefficient * x` after another such step; a coefficient of zero hides even a NaN."""
    carried = tl.where(later_coefficient == 0.0, 0.0, later_coefficient * number)
    return coefficient * later_coefficient, later_number + carried


@triton.jit
def _scan_tile(
    reward_ptr, value_ptr, next_value_ptr, terminated_ptr, done_ptr, i, valid, following, gamma, decay
):
    """Advantage and value at the entries `i`, whose first dimension goes back in time from `following`."""
    reward = tl.load(reward_ptr + i, mask=valid, other=0.0).to(tl.float32)
    value = tl.load(value_ptr + i, mask=valid, other=0.0).to(tl.float32)
    next_value = tl.load(next_value_ptr + i, mask=valid, other=0.0).to(tl.float32)
    terminated = tl.load(terminated_ptr + i, mask=valid, other=0).to(tl.int1)
    done = tl.load(done_ptr + i, mask=valid, other=0).to(tl.int1)
    delta = reward + tl.where(terminated, 0.0, gamma * next_value) - value
    coefficient = tl.where(done, 0.0, decay)
    reach, own = tl.associative_scan((coefficient, delta), 0, _compose)
    return own + tl.where(reach == 0.0, 0.0, reach * following), value


@triton.jit
def _kept(mask_ptr, i, valid):
    if mask_ptr is not None:
        valid = valid & tl.load(mask_ptr + i, mask=valid, other=0).to(tl.int1)
    return valid


@triton.jit
def _tile_moments(advantage, kept):
    """Count, mean and sum of squared deviations; the mean is taken twice, as it was rounded once."""
    count = tl.sum(kept.to(tl.float32))
    mean = tl.sum(tl.where(kept, advantage, 0.0)) / tl.maximum(count, 1.0)
    deviation = tl.where(kept, advantage - mean, 0.0)
    mean += tl.sum(deviation) / tl.maximum(count, 1.0)
    deviation = tl.where(kept, advantage - mean, 0.0)
    return count, mean, tl.sum(deviation * deviation)


@triton.jit
def gae_scan_kernel(
    reward_ptr,
    value_ptr,
    next_value_ptr,
    terminated_ptr,
    done_ptr,
    mask_ptr,
    advantage_ptr,
    value_target_ptr,
    partial_ptr,
    ticket_ptr,
    moments_ptr,
    num_steps,
    num_worlds,
    stride_step,
    stride_world,
    gamma,
    decay,
    eps,
    CHUNK: tl.constexpr,
    FEW: tl.constexpr,
    PARTIALS: tl.constexpr,
):
    """Any layout, the same of all tensors; the time runs backwards inside a chunk."""
    world = tl.program_id(0) * FEW + tl.arange(0, FEW)[None, :]
    back = tl.arange(0, CHUNK)[:, None]
    following = tl.zeros([1, FEW], tl.float32)
    count, mean, squares = 0.0, 0.0, 0.0
    for first in range(0, num_steps, CHUNK):
        step = num_steps - 1 - first - back
        valid = (step >= 0) & (world < num_worlds)
        i = tl.cast(step, tl.int64) * stride_step + tl.cast(world, tl.int64) * stride_world
        advantage, value = _scan_tile(
            reward_ptr, value_ptr, next_value_ptr, terminated_ptr, done_ptr, i, valid, following, gamma, decay
        )
        following = tl.sum(tl.where(back == CHUNK - 1, advantage, 0.0), 0)[None, :]
        tl.store(advantage_ptr + i, advantage, mask=valid)
        if value_target_ptr is not None:
            tl.store(value_target_ptr + i, advantage + value, mask=valid)
        number, middle, found = _tile_moments(advantage, _kept(mask_ptr, i, valid))
        shift = middle - mean
        share = number / tl.maximum(count + number, 1.0)
        squares += found + shift * shift * count * share
        mean += shift * share
        count += number
    _finish(count, mean, squares, partial_ptr, ticket_ptr, moments_ptr, eps, PARTIALS)


@triton.jit
def gae_tile_kernel(
    reward_ptr,
    value_ptr,
    next_value_ptr,
    terminated_ptr,
    done_ptr,
    mask_ptr,
    advantage_ptr,
    value_target_ptr,
    partial_ptr,
    word_ptr,
    moments_ptr,
    num_steps,
    num_worlds,
    stride_step,
    stride_world,
    gamma,
    decay,
    eps,
    STEPS: tl.constexpr,
    WORLDS: tl.constexpr,
    PARTIALS: tl.constexpr,
):
    """Any layout, as above; all steps are one tile, and the barrier needs all programs at once."""
    world = tl.program_id(0) * WORLDS + tl.arange(0, WORLDS)[None, :]
    step = num_steps - 1 - tl.arange(0, STEPS)[:, None]
    valid = (step >= 0) & (world < num_worlds)
    # 32 bits do, as the batch is small; wider ones take registers.
    i = step * stride_step + world * stride_world
    kept = _kept(mask_ptr, i, valid)
    advantage, value = _scan_tile(
        reward_ptr, value_ptr, next_value_ptr, terminated_ptr, done_ptr, i, valid, 0.0, gamma, decay
    )
    if value_target_ptr is not None:
        tl.store(value_target_ptr + i, advantage + value, mask=valid)
    count, mean, squares = _tile_moments(advantage, kept)
    _note(partial_ptr, count, mean, squares)
    grid_barrier(word_ptr)
    total, center, spread = _merge_noted(partial_ptr, 0, PARTIALS)
    scale = _scale(total, spread, eps)
    if tl.program_id(0) == 0:
        _report(moments_ptr, total, center, scale)
    tl.store(advantage_ptr + i, tl.where(kept, (advantage - center) * scale, 0.0), mask=valid)


@triton.jit
def apply_kernel(advantage_ptr, mask_ptr, moments_ptr, size, BLOCK: tl.constexpr):
    """Normalize in place; of all layouts, the entries are one row."""
    i = tl.cast(tl.program_id(0), tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < size
    mean, scale = tl.load(moments_ptr), tl.load(moments_ptr + 1)
    normalized = (tl.load(advantage_ptr + i, mask=inside) - mean) * scale
    if mask_ptr is not None:
        kept = tl.load(mask_ptr + i, mask=inside, other=0).to(tl.int1)
        normalized = tl.where(kept, normalized, 0.0)
    tl.store(advantage_ptr + i, normalized, mask=inside)


def gae(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    done: Tensor,
    gamma: float,
    lam: float,
    normalize: bool,
    mask: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `kernels.gae.gae`; tensors `[T, N]` of one layout on one CUDA device, no host synchronization."""
    num_steps, num_worlds = reward.shape
    advantage, value_target = (torch.empty_like(reward, dtype=torch.float32) for _ in range(2))
    moments = advantage.new_empty(3)
    tensors = (reward, value, next_value, terminated, done, mask, advantage, value_target)
    discounts = (gamma, gamma * lam, eps)
    with torch.cuda.device_of(reward):
        if normalize and (tile := one_tile_each(num_steps, num_worlds, reward.device)):
            _launch_tiles(tensors, moments, discounts, tile)
            return advantage, value_target, moments
        _launch_blocks(tensors, moments, discounts)
        if normalize:
            size = reward.numel()
            apply_kernel[(triton.cdiv(size, APPLY_BLOCK),)](
                advantage, mask, moments, size, BLOCK=APPLY_BLOCK, num_warps=APPLY_WARPS
            )
    return advantage, value_target, moments


def one_tile_each(num_steps: int, num_worlds: int, device: torch.device) -> dict[str, int] | None:
    """Steps and worlds of a program, if all programs are on the device at once; else None."""
    steps = max(2, triton.next_power_of_2(num_steps))
    worlds = TILE // steps
    at_once = min(programs_at_once(device, TILE_WARPS, TILE_REGISTERS), MAX_TILES)
    if steps > MAX_TILE_STEPS or triton.cdiv(num_worlds, worlds) > at_once:
        return None
    return {"STEPS": steps, "WORLDS": worlds}


def _launch_tiles(
    tensors: tuple[Tensor | None, ...],
    moments: Tensor,
    discounts: tuple[float, float, float],
    tile: dict[str, int],
) -> None:
    """One launch, which normalizes too."""
    reward = tensors[0]
    assert reward is not None
    num_programs = triton.cdiv(reward.shape[1], tile["WORLDS"])
    gae_tile_kernel[(num_programs,)](
        *tensors,
        moments.new_empty(3, num_programs),
        barrier_word(reward.device),
        moments,
        *reward.shape,
        *reward.stride(),
        *discounts,
        **tile,
        PARTIALS=triton.next_power_of_2(num_programs),
        num_warps=TILE_WARPS,
        maxnreg=TILE_REGISTERS,
        launch_cooperative_grid=True,
    )


def _launch_blocks(
    tensors: tuple[Tensor | None, ...], moments: Tensor, discounts: tuple[float, float, float]
) -> None:
    """Advantages as they are, and their moments."""
    reward = tensors[0]
    assert reward is not None
    num_steps, num_worlds = reward.shape
    scans = not reward.is_contiguous() or (num_worlds < FEW_WORLDS and num_steps > 2 * CHUNK)
    num_programs = triton.cdiv(num_worlds, FEW if scans else BLOCK)
    partial = moments.new_empty(3, num_programs)
    # Zeroed every time: kept between launches, it would belong to a stream, a graph or a failed launch.
    ticket = torch.zeros(1, dtype=torch.int32, device=reward.device)
    arguments = (*tensors, partial, ticket, moments, num_steps, num_worlds)
    partials = min(triton.next_power_of_2(num_programs), 1024)
    if scans:
        gae_scan_kernel[(num_programs,)](
            *arguments,
            *reward.stride(),
            *discounts,
            CHUNK=CHUNK,
            FEW=FEW,
            PARTIALS=partials,
            num_warps=SCAN_WARPS,
        )
    else:
        gae_kernel[(num_programs,)](
            *arguments,
            *discounts,
            BLOCK=BLOCK,
            NUM_STAGES=NUM_STAGES,
            PARTIALS=partials,
            num_warps=NUM_WARPS,
        )
