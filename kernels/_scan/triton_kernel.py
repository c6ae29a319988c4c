"""The recursion behind every return on a GPU: one program a block of worlds, along the steps."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels._scan import outputs

# As for GAE: four worlds a thread, whose flags fill the 4 bytes that an asynchronous copy needs, and enough
# steps in flight to hide the memory's latency.
BLOCK = 128
NUM_WARPS = 1
NUM_STAGES = 8


@triton.jit
def _load(pointer, i, valid):
    return tl.load(pointer + i, mask=valid, other=0.0).to(tl.float32)


@triton.jit
def _mix(value, following, lam):
    # With lam = 1 the value is not looked at: it may be NaN.
    return tl.where(lam == 1.0, following, value + lam * (following - value))


@triton.jit
def scan_kernel(
    reward_ptr,
    log_ratio_ptr,
    value_ptr,
    next_value_ptr,
    discount_ptr,
    terminated_ptr,
    done_ptr,
    advantage_ptr,
    target_ptr,
    num_steps,
    num_worlds,
    gamma,
    lam,
    rho_clip,
    c_clip,
    BLOCK: tl.constexpr,
    NUM_STAGES: tl.constexpr,
):
    """Lambda returns if there are discounts, V-trace if there are ratios, TD(lambda) if there are neither."""
    world = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = world < num_worlds
    following = _load(next_value_ptr, tl.cast(num_steps - 1, tl.int64) * num_worlds + world, valid)
    for step in tl.range(0, num_steps, num_stages=NUM_STAGES):
        i = tl.cast(num_steps - 1 - step, tl.int64) * num_worlds + world
        reward = _load(reward_ptr, i, valid)
        next_value = _load(next_value_ptr, i, valid)
        if discount_ptr is not None:
            future = _load(discount_ptr, i, valid) * _mix(next_value, following, lam)
            if terminated_ptr is not None:
                future = tl.where(tl.load(terminated_ptr + i, mask=valid), 0.0, future)
            following = reward + future
        else:
            terminated = tl.load(terminated_ptr + i, mask=valid)
            following = tl.where(tl.load(done_ptr + i, mask=valid), next_value, following)
            # `where`, because zero times the NaN of a diverged world would be NaN.
            if log_ratio_ptr is None:
                following = reward + tl.where(terminated, 0.0, gamma * _mix(next_value, following, lam))
            else:
                value = _load(value_ptr, i, valid)
                ratio = tl.exp(_load(log_ratio_ptr, i, valid))
                rho = tl.where(ratio > rho_clip, rho_clip, ratio)
                c = tl.where(ratio > c_clip, c_clip, ratio)
                bootstrap = tl.where(terminated, 0.0, gamma * next_value)
                future = tl.where(terminated, 0.0, gamma * following)
                tl.store(advantage_ptr + i, rho * (reward + future - value), mask=valid)
                correction = lam * c * (future - bootstrap)
                following = value + rho * (reward + bootstrap - value) + correction
        tl.store(target_ptr + i, following, mask=valid)


@triton.jit
def backward_kernel(
    gradient_ptr,
    target_ptr,
    next_value_ptr,
    discount_ptr,
    terminated_ptr,
    done_ptr,
    by_reward_ptr,
    by_value_ptr,
    by_discount_ptr,
    num_steps,
    num_worlds,
    gamma,
    lam,
    BLOCK: tl.constexpr,
    NUM_STAGES: tl.constexpr,
):
    world = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = world < num_worlds
    carried = tl.zeros([BLOCK], tl.float32)
    for step in tl.range(0, num_steps, num_stages=NUM_STAGES):
        i = tl.cast(step, tl.int64) * num_worlds + world
        cut = tl.full([BLOCK], step == num_steps - 1, tl.int1)
        by_reward = _load(gradient_ptr, i, valid) + carried
        tl.store(by_reward_ptr + i, by_reward, mask=valid)
        if discount_ptr is not None:
            value = _load(next_value_ptr, i, valid)
            following = tl.where(cut, value, _load(target_ptr, i + num_worlds, valid & ~cut))
            by_discount = by_reward * _mix(value, following, lam)
            by_mixed = _load(discount_ptr, i, valid) * by_reward
            if terminated_ptr is not None:
                terminated = tl.load(terminated_ptr + i, mask=valid)
                by_discount = tl.where(terminated, 0.0, by_discount)
                by_mixed = tl.where(terminated, 0.0, by_mixed)
            tl.store(by_discount_ptr + i, by_discount, mask=valid)
        else:
            cut = cut | tl.load(done_ptr + i, mask=valid).to(tl.int1)
            by_mixed = tl.where(tl.load(terminated_ptr + i, mask=valid), 0.0, gamma * by_reward)
        tl.store(by_value_ptr + i, by_mixed * tl.where(cut, 1.0, 1.0 - lam), mask=valid)
        carried = tl.where(cut, 0.0, lam * by_mixed)


def returns(
    reward: Tensor,
    next_value: Tensor,
    discount: Tensor | None,
    terminated: Tensor | None,
    done: Tensor | None,
    gamma: float,
    lam: float,
) -> Tensor:
    """See `kernels._scan.returns`; contiguous tensors on one CUDA device, no host synchronization."""
    target = outputs(reward, None)
    tensors = (reward, None, None, next_value, discount, terminated, done, None, target)
    _launch(scan_kernel, reward, *tensors, *reward.shape, gamma, lam, 0.0, 0.0)
    return target


def returns_backward(
    gradient: Tensor,
    target: Tensor | None,
    next_value: Tensor,
    discount: Tensor | None,
    terminated: Tensor | None,
    done: Tensor | None,
    gamma: float,
    lam: float,
) -> Tensor:
    """See `kernels._scan._returns_backward`; contiguous tensors on one CUDA device."""
    out = outputs(gradient, 2 if discount is None else 3)
    by_discount = None if discount is None else out[2]
    tensors = (gradient, target, next_value, discount, terminated, done, out[0], out[1], by_discount)
    _launch(backward_kernel, gradient, *tensors, *gradient.shape, gamma, lam)
    return out


def vtrace(
    reward: Tensor,
    log_ratio: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    done: Tensor,
    gamma: float,
    lam: float,
    rho_clip: float,
    c_clip: float,
) -> Tensor:
    """See `kernels.vtrace.vtrace`; `[2, T, N]`, advantage and value target."""
    out = outputs(reward, 2)
    tensors = (reward, log_ratio, value, next_value, None, terminated, done, out[0], out[1])
    _launch(scan_kernel, reward, *tensors, *reward.shape, gamma, lam, rho_clip, c_clip)
    return out


def _launch(kernel: Any, like: Tensor, *arguments: Any) -> None:
    with torch.cuda.device_of(like):
        kernel[(triton.cdiv(like.shape[1], BLOCK),)](
            *arguments, BLOCK=BLOCK, NUM_STAGES=NUM_STAGES, num_warps=NUM_WARPS, enable_fp_fusion=True
        )
