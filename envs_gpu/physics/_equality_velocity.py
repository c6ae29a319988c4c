"""Connections and welds whose Jacobian turns at the velocity of now, for MuJoCo Warp and MJX on Warp.

The acceleration that closes a loop depends on how fast the Jacobian of the constraint changes. MuJoCo Warp
3.17 makes the constraints before it works out the velocities of bodies and axes (`cvel`, `cdof_dot`), so it
reads those of the last timestep, and zeros after a restart. Cassie, whose legs are closed loops, was
0.4 rad/s off after a control step, 160 times what rounding accounts for.
"""

from __future__ import annotations

import functools
from typing import Any

_corrected: set[str] = set()


def correct_warp(constraint: Any, smooth: Any) -> None:
    """Give `constraint` of MuJoCo Warp the velocities first; before the first step is recorded.

    Args:
        constraint: the module that makes constraints.
        smooth: the module of the same package that works out velocities.
    """
    if constraint.__name__ in _corrected:
        return
    _corrected.add(constraint.__name__)
    original = constraint.make_constraint

    @functools.wraps(original)
    def make_constraint(model: Any, data: Any) -> None:
        if model.eq_connect_adr.size or model.eq_wld_adr.size:
            smooth.com_vel(model, data)
        original(model, data)

    constraint.make_constraint = make_constraint
