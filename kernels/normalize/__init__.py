"""Zero mean and unit standard deviation: of advantages here, of observations and values in `running`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels import dispatch
from kernels._checks import FLOATING, check_eps, computed_in
from kernels.normalize.running import (
    denormalize_value,
    gather_moments,
    make_moments,
    mean_and_std,
    merge_all,
    merge_moments,
    normalize_value,
    running_normalize,
)
from kernels.registry import kernel

__all__ = [
    "denormalize_value",
    "gather_moments",
    "make_inputs",
    "make_moments",
    "mean_and_std",
    "merge_all",
    "merge_moments",
    "normalize_advantage",
    "normalize_value",
    "running_normalize",
]


def make_inputs(
    num_steps: int,
    num_worlds: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> dict[str, Any]:
    """Random arguments for `normalize_advantage`, a tenth of the entries masked out."""
    generator = torch.Generator().manual_seed(seed)
    advantage = torch.randn(num_steps, num_worlds, generator=generator) * 3 + 2
    mask = torch.rand(num_steps, num_worlds, generator=generator) < 0.9
    return {"advantage": advantage.to(device, dtype), "mask": mask.to(device)}


@kernel("normalize", inputs=make_inputs)
def normalize_advantage(
    advantage: Tensor, eps: float = 1e-8, mask: Tensor | None = None, *, implementation: str = "auto"
) -> Tensor:
    """`(advantage - mean) / (std + eps)` over all entries, or over those where `mask` is true.

    The standard deviation is the unbiased one (divided by n - 1, as `torch.std`), and zero where n < 2. The
    statistics take two passes or Chan's update, never a sum of squares, so an offset far above the spread
    costs no digits beyond those that float32 has lost already. Not differentiable.

    Args:
        advantage: any shape, float32 or half (widened first), or float64 for the reference.
        eps: added to the standard deviation.
        mask: bool of the same shape; entries where it is false count for nothing, even if they are NaN, and
            come out as 0.
        implementation: as for `kernels.gae.gae`.

    Returns:
        The normalized advantage, contiguous, in the shape and dtype of `advantage`.

    Raises:
        ValueError: the advantage holds whole numbers, eps is below zero, the mask does not fit, or the
            implementation cannot take these tensors.
        ImportError: the package behind the implementation is not installed.
    """
    if advantage.dtype not in FLOATING:
        raise ValueError(
            "normalize_advantage: advantage must be float32, bfloat16, float16 or float64, "
            f"got {advantage.dtype}"
        )
    check_eps("normalize_advantage", eps)
    if mask is not None and (mask.shape, mask.dtype, mask.device) != (
        advantage.shape,
        torch.bool,
        advantage.device,
    ):
        raise ValueError(
            f"normalize_advantage: mask must be {list(advantage.shape)} bool on {advantage.device} like "
            f"advantage, got {list(mask.shape)} {mask.dtype} on {mask.device}"
        )
    dtype = computed_in(advantage.dtype)
    module = dispatch.load("normalize", implementation, advantage.device.type, dtype)
    if advantage.numel() == 0:
        return torch.empty_like(advantage)
    kept = None if mask is None else mask.contiguous()
    return module.normalize_advantage(advantage.to(dtype).contiguous(), eps, kept).to(advantage.dtype)
