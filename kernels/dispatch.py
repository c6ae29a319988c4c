"""Which implementation of a kernel runs: chosen once for a device and a dtype, and logged with the reason."""

from __future__ import annotations

import logging
import os
from functools import cache
from importlib import import_module
from types import ModuleType

import torch

logger = logging.getLogger(__name__)

IMPLEMENTATIONS = ("reference", "triton", "cpu")

_MODULES = {"reference": "reference", "triton": "triton_kernel", "cpu": "cpu"}
_PACKAGES = {"triton": "triton", "warp": "warp-lang"}


@cache
def load(kernel: str, implementation: str, device: str, dtype: torch.dtype) -> ModuleType:
    """The module of `kernel` that runs `implementation` on tensors of this device type and dtype.

    Args:
        kernel: name of the folder, such as "gae".
        implementation: "auto", "reference", "triton" or "cpu".
        device: `tensor.device.type`.
        dtype: dtype of the floating-point tensors.

    Raises:
        ValueError: unknown implementation, or one that cannot take these tensors.
        ImportError: the package behind it is not installed.
    """
    if implementation == "auto":
        implementation, reason = _choose(device, dtype)
    else:
        reason = "it was asked for"
    _check(kernel, implementation, device, dtype)
    try:
        module = import_module(f"kernels.{kernel}.{_MODULES[implementation]}")
    except ModuleNotFoundError as error:
        if error.name not in _PACKAGES:
            raise
        raise ImportError(
            f"kernel {kernel!r}: implementation {implementation!r} needs {error.name}; "
            f"`pip install {_PACKAGES[error.name]}`, or pass implementation='reference'"
        ) from error
    logger.info("kernel %s on %s: %s, because %s", kernel, device, implementation, reason)
    return module


def _choose(device: str, dtype: torch.dtype) -> tuple[str, str]:
    """The implementation for these tensors, and why."""
    if dtype != torch.float32:
        return "reference", f"the compiled ones take float32, not {dtype}"
    if device == "cuda":
        return "triton", "the tensors are on a CUDA device"
    if device == "cpu":
        return _choose_on_cpu()
    return "reference", f"nothing is compiled for {device}"


def _choose_on_cpu() -> tuple[str, str]:
    """Compiled code where there is room for it."""
    from kernels.warp_cache import has_cache  # imports Warp

    if has_cache():
        return "cpu", "the tensors are on the CPU"
    reason = "there is no folder that a compiled kernel can be written to"
    logger.warning("kernels run uncompiled: %s; set WARP_CACHE_PATH", reason)
    return "reference", reason


def _check(kernel: str, implementation: str, device: str, dtype: torch.dtype) -> None:
    """Refuse what would otherwise read a foreign pointer."""
    if implementation not in IMPLEMENTATIONS:
        known = ", ".join(("auto", *IMPLEMENTATIONS))
        raise ValueError(f"kernel {kernel!r}: unknown implementation {implementation!r}; known: {known}")
    if implementation == "reference":
        return
    interpreted = implementation == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
    needed = "cuda" if implementation == "triton" and not interpreted else "cpu"
    if device != needed or dtype != torch.float32:
        raise ValueError(
            f"kernel {kernel!r}: implementation {implementation!r} takes float32 tensors on {needed}, "
            f"got {dtype} on {device}; implementation='auto' picks one that fits"
        )
