"""Advantages relative to a group, of GRPO. T steps, N worlds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels import dispatch
from kernels._checks import FLOATING, check_like, computed_in
from kernels.registry import kernel


def make_inputs(
    num_steps: int,
    num_worlds: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> dict[str, Any]:
    """Random arguments for `group_advantage`: groups of some 8 worlds, a tenth of the entries masked out."""
    generator = torch.Generator().manual_seed(seed)
    reward = torch.randn(num_steps, num_worlds, generator=generator) * 3 + 2
    groups = torch.randint(num_worlds // 8 + 1, (num_worlds,), generator=generator)
    mask = torch.rand(num_steps, num_worlds, generator=generator) < 0.9
    return {"reward": reward.to(device, dtype), "groups": groups.to(device), "mask": mask.to(device)}


@kernel("group_advantage", inputs=make_inputs)
def group_advantage(
    reward: Tensor,
    groups: int | Tensor,
    mask: Tensor | None = None,
    eps: float = 1e-6,
    *,
    implementation: str = "auto",
) -> Tensor:
    """`(reward - mean) / (std + eps)`, both of the world's group (Shao et al. 2024, sections 4.1.2, 4.1.3).

    A group's statistics are over all its worlds and steps. The standard deviation is the unbiased one
    (divided by n - 1), and zero where n < 2. Equal rewards, as those of a group that always succeeds, make
    advantages of exactly zero. A NaN stays in its group. Not differentiable. Computed in float32 at least, in
    float64 by the reference. Inputs that are not contiguous are copied.

    Args:
        reward: `[N]`, one for an episode, or `[T, N]`; float32, bfloat16 or float16; float64 for the
            reference.
        groups: how many neighbouring worlds make a group, a divisor of N; or the groups' ids, `[N]` int32 or
            int64 of any value and in any order.
        mask: bool in the shape of `reward`; entries where it is false count for nothing, even if they are
            NaN, and come out as 0.
        eps: added to the standard deviation, above zero.
        implementation: as for `kernels.gae.gae`.

    Returns:
        The advantage, contiguous, in the shape and dtype of `reward`.

    Raises:
        ValueError: an argument does not fit, or the implementation cannot take these tensors.
        ImportError: the package behind the implementation is not installed.
    """
    _check(reward, groups, mask, eps)
    ids, size = (groups, 0) if isinstance(groups, Tensor) else (None, groups)
    call = _op if torch.compiler.is_compiling() else _run
    with torch.no_grad():
        return call(reward, ids, size, mask, float(eps), implementation)


def _check(reward: Tensor, groups: int | Tensor, mask: Tensor | None, eps: float) -> None:
    name = "group_advantage"
    if reward.ndim not in (1, 2) or reward.dtype not in FLOATING:
        raise ValueError(
            f"{name}: reward must be [N] or [T, N] of float32, bfloat16, float16 or float64, "
            f"got {list(reward.shape)} {reward.dtype}"
        )
    num_worlds = reward.shape[-1]
    if isinstance(groups, Tensor):
        integers = (torch.int32, torch.int64)
        if groups.shape != (num_worlds,) or groups.dtype not in integers or groups.device != reward.device:
            raise ValueError(
                f"{name}: groups must be an int, or [{num_worlds}] int32 or int64 on {reward.device} like "
                f"reward, got {list(groups.shape)} {groups.dtype} on {groups.device}"
            )
    elif not isinstance(groups, int) or groups < 1 or num_worlds % groups:
        raise ValueError(f"{name}: groups must divide the {num_worlds} worlds of reward, got {groups}")
    if mask is not None:
        check_like(name, "reward", reward, "mask", mask)
    if not eps > 0.0:
        raise ValueError(f"{name}: eps must be above zero, got {eps}")


def _run(
    reward: Tensor, ids: Tensor | None, size: int, mask: Tensor | None, eps: float, implementation: str
) -> Tensor:
    dtype = computed_in(reward.dtype)
    module = dispatch.load("group_advantage", implementation, reward.device.type, dtype)
    if reward.numel() == 0:
        return reward.new_empty(reward.shape)
    # Worlds in the order of their groups: one group's are neighbours.
    ids, order = (None, None) if ids is None else ids.sort(stable=True)
    rows = reward.contiguous().view(-1, reward.shape[-1])
    kept = None if mask is None else mask.contiguous().view(rows.shape)
    return module.group_advantage(rows, ids, order, size, kept, eps).view(reward.shape)


_op = torch.library.custom_op("pi_incubator::group_advantage", _run, mutates_args=())


@_op.register_fake
def _(reward: Tensor, *_: Any) -> Tensor:
    return reward.new_empty(reward.shape)
