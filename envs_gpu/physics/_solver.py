"""A solver for engines that lack one of C MuJoCo's."""

from __future__ import annotations

import copy

import mujoco

_PGS, _NEWTON = int(mujoco.mjtSolver.mjSOL_PGS), int(mujoco.mjtSolver.mjSOL_NEWTON)


def without_pgs(model: mujoco.MjModel) -> mujoco.MjModel:
    """`model`, or a copy with Newton's method where it asks for PGS, which MuJoCo Warp and MJX lack.

    Both minimize the same function: with enough iterations PGS arrives where Newton's method does (within
    1e-13 rad/s after a control step of `humanoid`; its 50 iterations leave up to 1.5e-5 rad/s).
    """
    if model.opt.solver != _PGS:
        return model
    model = copy.copy(model)
    model.opt.solver = _NEWTON
    return model
