"""`torch.compile` for methods that are called with the same shapes over and over."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any, TypeVar, cast

import torch

_T = TypeVar("_T")


def compiled(method: Callable[..., _T]) -> Callable[..., _T]:
    """A bound method, compiled for the inputs that it is called with first.

    Whether those are still the same is not asked at every call: behind physics, with cold caches, the
    answer takes as long as a small task's rewards. What may change between calls has to be a tensor. Torch
    keeps what it compiled with a function's code, so that every object needs code of its own.
    """
    assert isinstance(method, MethodType)
    shared = method.__func__
    code, defaults = shared.__code__.replace(), shared.__defaults__
    own = FunctionType(code, shared.__globals__, shared.__name__, defaults, shared.__closure__)
    own.__kwdefaults__ = shared.__kwdefaults__
    options: dict[str, str | int | bool | Callable[..., Any]] = {
        "guard_filter_fn": torch.compiler.skip_all_guards_unsafe
    }
    fast = torch.compile(MethodType(own, method.__self__), dynamic=False, fullgraph=True, options=options)
    return cast(Callable[..., _T], fast)
