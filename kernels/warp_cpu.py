"""What the compiled CPU paths share: Warp, started quietly, and a launch whose packing is done once.

Warp brings its own clang, so a user needs no compiler. The kernels' loops are C++ snippets over raw
pointers: Warp's own array indexing goes through run-time strides, which keeps clang from vectorizing.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import warp as wp


class CpuLaunch:
    """A Warp kernel of scalar arguments, launched on the CPU in the calling thread.

    The recorded command is reused, which takes 4 µs a launch where `wp.launch` takes 13. Each thread keeps
    its own, because setting the arguments and launching are two steps.
    """

    def __init__(self, kernel: wp.Kernel) -> None:
        self._kernel = kernel
        self._thread = threading.local()

    def __call__(self, dim: int, *args: int | float) -> None:
        """Run `dim` instances of the kernel on `args`, pointers passed as integers."""
        if not hasattr(self._thread, "command"):
            with _quiet():
                command = wp.launch(self._kernel, dim=1, inputs=args, device="cpu", record_cmd=True)
            self._thread.command = command
        command = self._thread.command
        command.set_dim(dim)
        command.set_params_from_ctypes(args)
        command.launch()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Warp's report of its start-up, its builds and, where there is none, the missing CUDA driver."""
    wp.config.log_level = max(wp.config.log_level, wp.LOG_WARNING)
    if torch.cuda.is_available():
        yield
        return
    # The driver's absence is printed by native code, so only the file descriptor can be silenced.
    stderr, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        wp.init()
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(null)
    yield
