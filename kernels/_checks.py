"""What a kernel refuses: each message names the argument, what it is and what it should be."""

from __future__ import annotations

import math

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
FLAGS = ("terminated", "done", "mask")


def check_rollout(kernel: str, **tensors: Tensor) -> None:
    """All `[T, N]` on one device: flags are bool, everything else is of one floating-point dtype.

    Raises:
        ValueError: one of them does not fit the first that is not a flag.
    """
    first, like = next(item for item in tensors.items() if item[0] not in FLAGS)
    if like.ndim != 2 or like.dtype not in FLOATING:
        raise ValueError(
            f"{kernel}: {first} must be [T, N] of float32, bfloat16, float16 or float64, "
            f"got {list(like.shape)} {like.dtype}"
        )
    for name, tensor in tensors.items():
        check_like(kernel, first, like, name, tensor)


def check_like(kernel: str, first: str, like: Tensor, name: str, tensor: Tensor) -> None:
    """`tensor` has the shape and the device of `like`, and its dtype unless it is a flag."""
    dtype = torch.bool if name in FLAGS else like.dtype
    if (tensor.shape, tensor.dtype, tensor.device) != (like.shape, dtype, like.device):
        raise ValueError(
            f"{kernel}: {name} must be {list(like.shape)} {dtype} on {like.device} like {first}, "
            f"got {list(tensor.shape)} {tensor.dtype} on {tensor.device}"
        )


def check_fractions(kernel: str, **numbers: float) -> None:
    """Each lies in [0, 1].

    Raises:
        ValueError: one does not, or is NaN.
    """
    for name, number in numbers.items():
        if not 0.0 <= number <= 1.0:
            raise ValueError(f"{kernel}: {name} must be in [0, 1], got {number}")


def check_eps(kernel: str, eps: float) -> None:
    """It is a number of at least zero.

    Raises:
        ValueError: it is not.
    """
    if not 0.0 <= eps < math.inf:
        raise ValueError(f"{kernel}: eps must be a finite number of at least 0, got {eps}")


def computed_in(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which tensors of `dtype` are computed: the compiled kernels widen half precision."""
    return torch.float64 if dtype == torch.float64 else torch.float32
