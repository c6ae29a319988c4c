"""`torch.compile` for functions that are called with the same shapes over and over."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Callable
from types import MethodType
from typing import Any, TypeVar, cast

import torch
from torch._inductor.exc import CppCompileError

MAX_REASON = 200  # characters of a compiler's words in a warning

log = logging.getLogger(__name__)

_T = TypeVar("_T")


def compiled(function: Callable[..., _T]) -> Callable[..., _T]:
    """A function or bound method, compiled at its first call for the inputs of that call.

    Guards are disabled: shapes, dtypes and constants are frozen at the first call, and later calls are not
    checked against them. Whatever changes between calls must be a tensor that keeps its shape. The reason is
    in docs/decisions/0007: after a physics step the caches are cold, and checking guards would take as long
    as computing a small task's rewards.
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
    # Compiling draws random numbers. A run that continues, and so compiles again, must not be changed by it.
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            fast = just_in_time.aot_compile((arguments, {})).fn
    except Exception as error:
        if not (reason := _reason_of_machine(error)):
            raise
        name = getattr(function, "__qualname__", repr(function))
        log.warning("%s runs uncompiled, because this machine cannot compile it (%s)", name, reason)
        return function
    # For a bound method `aot_compile` returns the plain function.
    bound = MethodType(fast, function.__self__) if isinstance(function, MethodType) else fast
    return cast(Callable[..., _T], bound)


def _reason_of_machine(error: BaseException | None) -> str | None:
    """Why compiling failed, where compiler, disk or memory are the cause; None where it is the function."""
    while error is not None:
        if isinstance(error, OSError | MemoryError | CppCompileError):
            lines = str(error).strip().splitlines() or [type(error).__name__]
            return textwrap.shorten(lines[-1], MAX_REASON)
        error = getattr(error, "inner_exception", None) or error.__cause__ or error.__context__
    return None
