"""What the compiled CPU paths share: Warp, started quietly, and a launch whose packing is done once.

Warp brings its own clang, so a user needs no compiler. The kernels' loops are C++ snippets over raw
pointers: Warp's own array indexing goes through run-time strides, which keeps clang from vectorizing.
"""

from __future__ import annotations

import os
import threading
from functools import cache

import torch
import warp as wp


class CpuLaunch:
    """A Warp kernel of scalar arguments, launched on the CPU in the calling thread.

    The recorded command is kept, which saves 10 µs a call over `wp.launch`. Each thread has its own, because
    setting the arguments and launching are two steps.
    """

    def __init__(self, kernel: wp.Kernel) -> None:
        self._kernel = kernel
        self._thread = threading.local()

    def __call__(self, dim: int, *args: int | float) -> None:
        """Run `dim` instances of the kernel on `args`, pointers passed as integers."""
        if not hasattr(self._thread, "command"):
            _start()
            self._thread.command = wp.launch(self._kernel, dim, inputs=args, device="cpu", record_cmd=True)
        command = self._thread.command
        command.set_dim(dim)
        command.set_params_from_ctypes(args)
        command.launch()


@cache
def _start() -> None:
    """Start Warp without its banner, its build log and, on a machine without a GPU, its warning of that."""
    wp.config.log_level = max(wp.config.log_level, wp.LOG_WARNING)
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
