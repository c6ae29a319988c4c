"""Generalized advantage estimation, normalized in the same pass. T steps, N worlds."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from kernels import dispatch
from kernels._checks import check_eps, check_fractions, check_rollout, computed_in
from kernels.gae.distributed import apply, merge_over_group
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
    normalize: bool = True,
    mask: Tensor | None = None,
    layout: str = "TN",
    eps: float = 1e-8,
    group: ProcessGroup | None = None,
    implementation: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Advantage and value target of a rollout (Schulman et al. 2016, eq. 16), and the advantage's moments.

        delta[t]     = reward[t] + gamma * next_value[t] * ~terminated[t] - value[t]
        advantage[t] = delta[t] + gamma * lam * ~done[t] * advantage[t + 1]
        value_target = advantage + value
        normalized   = (advantage - mean) * scale,    scale = 1 / (std + eps)

    A NaN that a flag hides stays hidden: `next_value` where terminated, the following episode where done. Any
    other stays in its own column, and out of the moments where the mask excludes it. Not differentiable.

    Args:
        reward: `[T, N]` float32, bfloat16 or float16, or float64 for the reference.
        value: `[T, N]`, V of the observation that was acted on.
        next_value: `[T, N]`, V of the true next observation: of the last one of its episode where done.
        terminated: `[T, N]` bool, the episode ended and its value is zero from here on.
        done: `[T, N]` bool, terminated or truncated: the trace is cut.
        gamma: discount factor, 0 to 1.
        lam: weight of the longer estimates: 0 is one-step TD, 1 is Monte Carlo.
        normalize: whether the advantage comes out normalized. A loss that takes the moments can do that
            itself, and spares a pass over memory.
        mask: `[T, N]` bool; where it is false an entry counts for no moment, and its normalized advantage
            is 0. None keeps all.
        layout: "TN", or "NT" where every tensor is `[N, T]`; results are of the same layout.
        eps: added to the standard deviation, the unbiased one (divided by n - 1), zero where n < 2.
        group: processes whose rollouts are normalized as one: the moments are those of all of them. Not in
            a graph of torch.compile.
        implementation: "auto" takes the Triton kernel on CUDA and the compiled CPU kernel on the CPU;
            "reference", "triton" and "cpu" name one.

    Returns:
        `(advantage, value_target, moments)`: two of the shape of `reward`, and `[3]` mean and scale of the
        advantages before they were normalized, and how many count; float32, or float64 of float64.

    Raises:
        ValueError: shapes, dtypes, devices or discounts do not fit, or the implementation cannot take them.
        ImportError: the package behind the implementation is not installed.
    """
    if layout not in ("TN", "NT"):
        raise ValueError(f"gae: layout must be 'TN' or 'NT', got {layout!r}")
    if not _is_plain(reward, (value, next_value), (terminated, done)) or mask is not None:
        flags = {"terminated": terminated, "done": done} | ({} if mask is None else {"mask": mask})
        check_rollout("gae", reward=reward, value=value, next_value=next_value, **flags)
    check_fractions("gae", gamma=gamma, lam=lam)
    check_eps("gae", eps)
    arguments = (reward, value, next_value, terminated, done, gamma, lam, normalize, mask, layout, eps)
    # The operator is for graphs; called by itself it takes longer than a small rollout.
    if torch.compiler.is_compiling():
        if group is not None:
            raise ValueError("gae: group cannot be given in a compiled graph; call gae outside of it")
        return _gae_op(*arguments, implementation)
    if group is None:
        return _gae(*arguments, implementation)
    advantage, value_target, moments = _gae(*arguments[:7], False, *arguments[8:], implementation)
    moments = merge_over_group(moments, eps, group)
    return apply(advantage, moments, mask) if normalize else advantage, value_target, moments


def _is_plain(reward: Tensor, floats: tuple[Tensor, ...], flags: tuple[Tensor, ...]) -> bool:
    """Whether everything fits a float32 `reward`: the full check takes as long as a small rollout."""
    shape, device = reward.shape, reward.device
    if len(shape) != 2 or reward.dtype is not torch.float32:
        return False
    for tensor in floats:
        if tensor.shape != shape or tensor.dtype is not torch.float32 or tensor.device != device:
            return False
    return all(
        tensor.shape == shape and tensor.dtype is torch.bool and tensor.device == device for tensor in flags
    )


def _gae(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    done: Tensor,
    gamma: float,
    lam: float,
    normalize: bool,
    mask: Tensor | None,
    layout: str,
    eps: float,
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = computed_in(reward.dtype)
    module = dispatch.load("gae", implementation, reward.device.type, dtype)
    if reward.numel() == 0:
        empty = torch.empty_like(reward, dtype=dtype)
        return empty, torch.empty_like(empty), _no_moments(eps, empty)
    tensors = [tensor.contiguous() for tensor in (reward, value, next_value, terminated, done)]
    mask = None if mask is None else mask.contiguous()
    if layout == "NT":
        tensors, mask = [tensor.t() for tensor in tensors], None if mask is None else mask.t()
    advantage, value_target, moments = module.gae(*tensors, gamma, lam, normalize, mask, eps)
    if layout == "NT":
        advantage, value_target = advantage.t(), value_target.t()
    return advantage, value_target, moments


@torch.library.custom_op("pi_incubator::gae", mutates_args=())
def _gae_op(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    done: Tensor,
    gamma: float,
    lam: float,
    normalize: bool,
    mask: Tensor | None,
    layout: str,
    eps: float,
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    arguments = (reward, value, next_value, terminated, done, gamma, lam, normalize, mask, layout, eps)
    advantage, value_target, moments = _gae(*arguments, implementation)
    # An operator's results must not share memory, as those of the CPU do, and lie as `register_fake` says.
    shared = advantage.untyped_storage().data_ptr() == value_target.untyped_storage().data_ptr()
    if shared:
        value_target, moments = value_target.clone(), moments.clone()
    return advantage.contiguous(), value_target.contiguous(), moments


@_gae_op.register_fake
def _(reward: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    advantage = reward.new_empty(reward.shape, dtype=computed_in(reward.dtype))
    return advantage, torch.empty_like(advantage), advantage.new_empty(3)


def _no_moments(eps: float, like: Tensor) -> Tensor:
    return torch.tensor([0.0, 1.0 / eps if eps else math.inf, 0.0], dtype=like.dtype, device=like.device)
