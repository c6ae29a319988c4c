"""Generalized advantage estimation. T steps, N worlds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels import dispatch
from kernels.registry import kernel


def make_inputs(
    num_steps: int,
    num_worlds: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> dict[str, Any]:
    """Random arguments for `gae`: 2% of the steps terminate, 2% are truncated."""
    generator = torch.Generator().manual_seed(seed)
    shape = (num_steps, num_worlds)
    reward, value, next_value = (torch.randn(shape, generator=generator) for _ in range(3))
    terminated = torch.rand(shape, generator=generator) < 0.02
    truncated = torch.rand(shape, generator=generator) < 0.02
    return {
        "reward": reward.to(device, dtype),
        "value": value.to(device, dtype),
        "next_value": next_value.to(device, dtype),
        "terminated": terminated.to(device),
        "done": (terminated | truncated).to(device),
        "gamma": 0.99,
        "lam": 0.95,
    }


@kernel("gae", inputs=make_inputs)
def gae(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    done: Tensor,
    gamma: float,
    lam: float,
    *,
    implementation: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Advantage and value target of a rollout (Schulman et al. 2016, eq. 16).

        delta[t]     = reward[t] + gamma * next_value[t] * ~terminated[t] - value[t]
        advantage[t] = delta[t] + gamma * lam * ~done[t] * advantage[t + 1]
        value_target = advantage + value

    A NaN that a flag hides stays hidden: `next_value` where terminated, the following episode where done.
    Not differentiable. Inputs that are not contiguous are copied.

    Args:
        reward: `[T, N]` float32, or float64 for the reference.
        value: `[T, N]`, V of the observation that was acted on.
        next_value: `[T, N]`, V of the true next observation: of the last one of its episode where done.
        terminated: `[T, N]` bool, the episode ended and its value is zero from here on.
        done: `[T, N]` bool, terminated or truncated: the trace is cut.
        gamma: discount factor.
        lam: weight of the longer estimates: 0 is one-step TD, 1 is Monte Carlo.
        implementation: "auto" takes the Triton kernel on CUDA and the compiled CPU kernel on the CPU;
            "reference", "triton" and "cpu" name one.

    Returns:
        `(advantage, value_target)`, both `[T, N]` in the dtype of `reward`.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or the implementation cannot take them.
        ImportError: the package behind the implementation is not installed.
    """
    _check(reward=reward, value=value, next_value=next_value, terminated=terminated, done=done)
    module = dispatch.load("gae", implementation, reward.device.type, reward.dtype)
    if reward.numel() == 0:
        return torch.empty_like(reward), torch.empty_like(reward)
    tensors = [tensor.contiguous() for tensor in (reward, value, next_value, terminated, done)]
    return module.gae(*tensors, gamma, lam)


def _check(**tensors: Tensor) -> None:
    reward = tensors["reward"]
    if reward.ndim != 2:
        raise ValueError(f"gae: reward must be [T, N], got {list(reward.shape)}")
    for name, tensor in tensors.items():
        dtype = torch.bool if name in ("terminated", "done") else reward.dtype
        if (tensor.shape, tensor.dtype, tensor.device) != (reward.shape, dtype, reward.device):
            raise ValueError(
                f"gae: {name} must be {list(reward.shape)} {dtype} on {reward.device} like reward, "
                f"got {list(tensor.shape)} {tensor.dtype} on {tensor.device}"
            )
