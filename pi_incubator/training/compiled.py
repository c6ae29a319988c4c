"""`torch.compile` for an optimizer step: loss, gradients, clipping and new weights in one function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from envs_gpu.compiled import compiled
from pi_incubator import faults

_T = TypeVar("_T")


def compiled_step(method: Callable[..., _T]) -> Callable[..., _T]:
    """A bound method that calls `torch.autograd.grad`, compiled whole; see `envs_gpu.compiled`."""
    fast = compiled(method)
    traced = False

    def step(*arguments: Any) -> _T:
        nonlocal traced
        if traced:
            return fast(*arguments)
        faults.reach("compile")
        # A setting of the calling thread, and so made where the function is traced: at its first call.
        with torch._dynamo.config.patch(trace_autograd_ops=True):
            result = fast(*arguments)
        traced = True
        return result

    return step


def compiled_piece(function: Callable[..., _T]) -> Callable[..., _T]:
    """A differentiable function that is called in a loop of one optimizer step, compiled alone.

    It takes less time to compile than the whole step, which would hold as many copies of it as calls. Guards
    stay: the state that enters the first call of a loop needs no gradient, those of later calls do, so the
    function is compiled for both.
    """
    return torch.compile(function, dynamic=False, fullgraph=True)
