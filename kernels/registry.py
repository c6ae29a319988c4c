"""The kernels by name, for the tests and benchmarks that run over all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypeVar

Call = TypeVar("Call", bound=Callable[..., Any])


@dataclass(frozen=True)
class Kernel:
    """A registered kernel: `kernel.call(**kernel.inputs(num_steps, num_worlds), implementation="cpu")`."""

    name: str
    call: Callable[..., Any]
    inputs: Callable[..., dict[str, Any]]
    """`inputs(num_steps, num_worlds, device="cpu", dtype=torch.float32, seed=0)` makes them for `call`."""


_KERNELS: dict[str, Kernel] = {}


def kernel(name: str, *, inputs: Callable[..., dict[str, Any]]) -> Callable[[Call], Call]:
    """Decorator that files a function under `name` beside the maker of its test inputs.

    Raises:
        ValueError: `name` is taken.
    """

    def register(call: Call) -> Call:
        if name in _KERNELS:
            raise ValueError(f"kernel {name!r} is registered twice; rename one of the two")
        _KERNELS[name] = Kernel(name, call, inputs)
        return call

    return register


def get(name: str) -> Kernel:
    """The kernel called `name`.

    Raises:
        ValueError: no such kernel; the message suggests the nearest name.
    """
    if name not in _KERNELS:
        close = get_close_matches(name, _KERNELS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"unknown kernel {name!r}; {hint}known: {', '.join(names())}")
    return _KERNELS[name]


def names() -> list[str]:
    """Every registered name, sorted."""
    return sorted(_KERNELS)
