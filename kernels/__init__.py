"""Numerical kernels of reinforcement learning: each a reference, a Triton and a compiled CPU version.

Importing this package registers every kernel. It loads torch only; triton and warp are imported by the
first call that needs them.
"""

from kernels import gae, normalize, ppo_loss
from kernels.registry import Kernel, get, kernel, names

__all__ = ["Kernel", "gae", "get", "kernel", "names", "normalize", "ppo_loss"]
