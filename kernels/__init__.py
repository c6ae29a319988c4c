"""Numerical kernels of reinforcement learning: each a reference, a Triton and a compiled CPU version.

Importing this package registers every kernel. It loads torch only; triton and warp are imported by the
first call that needs them.
"""

from kernels.registry import Kernel, get, kernel, names

import kernels.gae  # isort: skip
import kernels.normalize  # isort: skip  # noqa: F401

__all__ = ["Kernel", "get", "kernel", "names"]
