"""A Hessian whose last bits do not depend on the number of worlds, for MuJoCo Warp on a CPU.

MuJoCo Warp 3.17 adds the blocks of a sparse Hessian in strides: one stride a group of threads, and the fewer
worlds there are, the more groups share a world. A CPU runs the groups one after the other, so for it they
change nothing but the order of the sum, which was another for one, two, three and for more worlds.
"""

from __future__ import annotations

import functools
from typing import Any

import warp as wp

_corrected: set[str] = set()


def correct_warp(solver: Any) -> None:
    """Give MuJoCo Warp's `solver` one group a world on a CPU; before the first step is recorded."""
    if solver.__name__ in _corrected:
        return
    _corrected.add(solver.__name__)
    original = solver._jtdaj_groups_per_world

    @functools.wraps(original)
    def groups_per_world(nworld: int, njmax: int, kernel: Any) -> int:
        return 1 if wp.get_device().is_cpu else original(nworld, njmax, kernel)

    solver._jtdaj_groups_per_world = groups_per_world
