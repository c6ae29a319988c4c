"""Numerical kernels of reinforcement learning: each a reference, a Triton and a compiled CPU version.

Importing this package registers every kernel. It loads torch only; triton and warp are imported by the
first call that needs them.
"""

from kernels import (
    discounted_return,
    gae,
    group_advantage,
    lambda_return,
    normalize,
    ppo_loss,
    selective_scan,
    sum_tree,
    td_lambda,
    vtrace,
)
from kernels.registry import Kernel, get, kernel, names

__all__ = [
    "Kernel",
    "discounted_return",
    "gae",
    "get",
    "group_advantage",
    "kernel",
    "lambda_return",
    "names",
    "normalize",
    "ppo_loss",
    "selective_scan",
    "sum_tree",
    "td_lambda",
    "vtrace",
]
