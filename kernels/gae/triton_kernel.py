"""Generalized advantage estimation on a GPU: one program a block of worlds, backwards over the steps."""

# mypy: disable-error-code="no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor

# Four worlds a thread: the flags of one thread then fill the 4 bytes that an asynchronous copy needs.
BLOCK = 128
NUM_WARPS = 1
# Steps in flight. The recurrence itself is two operations; the time goes into waiting for memory.
NUM_STAGES = 8


@triton.jit
def gae_kernel(
    reward_ptr,
    value_ptr,
    next_value_ptr,
    terminated_ptr,
    done_ptr,
    advantage_ptr,
    value_target_ptr,
    num_steps,
    num_worlds,
    gamma,
    decay,
    BLOCK: tl.constexpr,
    NUM_STAGES: tl.constexpr,
):
    world = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = world < num_worlds
    advantage = tl.zeros([BLOCK], tl.float32)
    for step in tl.range(0, num_steps, num_stages=NUM_STAGES):
        i = tl.cast(num_steps - 1 - step, tl.int64) * num_worlds + world
        reward = tl.load(reward_ptr + i, mask=valid)
        value = tl.load(value_ptr + i, mask=valid)
        next_value = tl.load(next_value_ptr + i, mask=valid)
        terminated = tl.load(terminated_ptr + i, mask=valid)
        done = tl.load(done_ptr + i, mask=valid)
        # `where`, because zero times the NaN of a diverged world would be NaN.
        delta = reward + tl.where(terminated, 0.0, gamma * next_value) - value
        advantage = delta + tl.where(done, 0.0, decay * advantage)
        tl.store(advantage_ptr + i, advantage, mask=valid)
        tl.store(value_target_ptr + i, advantage + value, mask=valid)


def gae(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    done: Tensor,
    gamma: float,
    lam: float,
) -> tuple[Tensor, Tensor]:
    """See `kernels.gae.gae`; contiguous tensors on one CUDA device, no host synchronization."""
    num_steps, num_worlds = reward.shape
    advantage, value_target = torch.empty_like(reward), torch.empty_like(reward)
    with torch.cuda.device_of(reward):
        gae_kernel[(triton.cdiv(num_worlds, BLOCK),)](
            reward,
            value,
            next_value,
            terminated,
            done,
            advantage,
            value_target,
            num_steps,
            num_worlds,
            gamma,
            gamma * lam,
            BLOCK=BLOCK,
            NUM_STAGES=NUM_STAGES,
            num_warps=NUM_WARPS,
            enable_fp_fusion=True,
        )
    return advantage, value_target
