"""Servos at their force limit under MJX's implicit integrator, as C MuJoCo has them.

`implicitfast` takes a servo's damping into the mass matrix. C and MuJoCo Warp leave out a servo whose
force is at its limit, which no velocity changes; MJX 3.17 damps that one too. The light wrist of an arm was
10 rad/s away from C after one control step of saturated servos.
"""

from __future__ import annotations

import functools
from typing import Any

_corrected: set[str] = set()


def correct_mjx(derivative: Any) -> None:
    """Give MJX's `derivative` the limit; before the first function is traced."""
    if derivative.__name__ in _corrected:
        return
    _corrected.add(derivative.__name__)
    original = derivative.deriv_smooth_vel

    @functools.wraps(original)
    def deriv_smooth_vel(model: Any, data: Any) -> Any:
        low, high = model.actuator_forcerange.T  # [nu]
        force = data.actuator_force
        moves = ~(model.actuator_forcelimited & ((force <= low) | (force >= high)))[:, None]  # [nu, 1]
        # Only the derivatives are made of this copy; forces have been computed.
        free = {name: getattr(model, name) * moves for name in ("actuator_gainprm", "actuator_biasprm")}
        return original(model.replace(**free), data)

    derivative.deriv_smooth_vel = deriv_smooth_vel
