"""Compiled CPU paths: C++ over raw pointers, built by Warp's own clang, so that a user needs no compiler."""

import ctypes
import os
import threading
from collections.abc import Callable, Mapping
from functools import cache, partial
from struct import Struct
from typing import Any

import torch
import warp as wp

from kernels.warp_cache import has_cache

_FORMATS = {"long long": "q", "int": "i", "double": "d", "float": "f"}

# For the head of a body; the exponential of the C library does not vectorize.
EXP = """
    // Cephes' expf, inline so that loops over it vectorize: 2 ulp, 0 below -87.3, inf above 88.3.
    const auto exp_ = [](float x) {
        const float low = -87.3f, high = 88.3f;
        const float inside = x < low ? low : x > high ? high : x;
        const float n = (inside * 1.44269504f + 12582912.0f) - 12582912.0f;
        const float r = (inside - n * 0.693359375f) + n * 2.12194440e-4f;
        float p = 1.9875691500e-4f;
        p = p * r + 1.3981999507e-3f;
        p = p * r + 8.3334519073e-3f;
        p = p * r + 4.1665795894e-2f;
        p = p * r + 1.6666665459e-1f;
        p = p * r + 5.0000001201e-1f;
        p = p * r * r + r + 1.0f;
        const int exponent = n == n ? ((int)n + 127) << 23 : 0;
        const float y = x == x ? p * __builtin_bit_cast(float, exponent) : x;
        return x < low ? 0.0f : x > high ? __builtin_inff() : y;
    };
"""


class CpuKernel:
    """A C++ function body that runs in the calling thread.

    Warp's own arrays go through run-time strides, which keeps clang from vectorizing, and its launch converts
    one argument after the other, which takes longer than a small rollout. So all arguments lie in one struct,
    and a launch that was recorded once reads them there.

    Args:
        arguments: name -> C++ type: a pointer or one of `_FORMATS`, in the order in which a call takes
            them. The body finds them under their names.
        body: what runs.
    """

    def __init__(self, arguments: Mapping[str, str], body: str) -> None:
        fields = "".join(f"{kind} {name}; " for name, kind in arguments.items())
        names = "".join(f"const auto {name} = given->{name}; " for name in arguments)
        head = f"struct Arguments {{ {fields}}}; const auto *given = (const Arguments *)arguments; {names}"
        self._kernel = _make_kernel(head + body)
        self._format = Struct("".join(_FORMATS.get(kind, "Q") for kind in arguments.values()))
        # Each thread has a struct of its own, because filling it and launching are two steps.
        self._thread = threading.local()

    def __call__(self, *arguments: int | float) -> None:
        """Run it; a pointer is given as an integer."""
        try:
            fill, launch = self._thread.steps
        except AttributeError:
            fill, launch = self._thread.steps = self._prepare()
        fill(*arguments)
        launch()

    def _prepare(self) -> tuple[Callable[..., None], Callable[[], None]]:
        """What writes this thread's struct, and what runs the body on it."""
        _start()
        struct = bytearray(self._format.size)
        address = ctypes.c_uint64(torch.frombuffer(struct, dtype=torch.uint8).data_ptr())
        recorded = wp.launch(self._kernel, 1, inputs=[address.value], device="cpu", record_cmd=True)
        # What `recorded.launch()` comes to, which makes the same two structs anew each time.
        bounds = recorded.params[0]
        launch = partial(recorded.hooks.forward, ctypes.byref(bounds), ctypes.byref(address))
        return partial(self._format.pack_into, struct, 0), launch


def _make_kernel(snippet: str) -> Any:
    @wp.func_native(snippet)
    def body(arguments: wp.uint64) -> None: ...

    @wp.kernel(enable_backward=False, module="unique")
    def run(arguments: wp.uint64) -> None:
        body(arguments)

    return run


@cache
def _start() -> None:
    """Start Warp without its banner, its build log and, on a machine without a GPU, its warning of that."""
    wp.config.log_level = max(wp.config.log_level, wp.LOG_WARNING)
    has_cache()
    if torch.cuda.is_available():
        wp.init()
        return
    # Native code prints that warning whatever the log level, so the file descriptor is silenced meanwhile.
    stderr, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        wp.init()
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(null)
