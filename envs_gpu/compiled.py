"""`torch.compile` for functions that are called with the same shapes over and over."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any, TypeVar, cast

import torch

_T = TypeVar("_T")


def compiled(function: Callable[..., _T]) -> Callable[..., _T]:
    """A function or bound method, compiled when it is first called, for inputs like those.

    Whether inputs still are like those is not asked at every call, and Dynamo, which asks, is not in the way
    either: behind physics, with cold caches, that takes as long as a small task's rewards. What may change
    between calls has to be a tensor, and keep its shape.
    """
    fast: Callable[..., _T] | None = None

    def call(*arguments: Any) -> _T:
        nonlocal fast
        if fast is None:
            fast = _compile(function, arguments)
        return fast(*arguments)

    return call


def _compile(function: Callable[..., _T], arguments: tuple[Any, ...]) -> Callable[..., _T]:
    options: dict[str, Any] = {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe}
    just_in_time: Any = torch.compile(function, dynamic=False, fullgraph=True, options=options)
    # Compiling draws random numbers; whoever draws next, as a run that continues, must not notice.
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        fast = just_in_time.aot_compile((arguments, {})).fn
    # Of a method it gives the function.
    bound = MethodType(fast, function.__self__) if isinstance(function, MethodType) else fast
    return cast(Callable[..., _T], bound)
