"""MuJoCo's sleeping bodies, which no engine keeps for a batch of worlds."""

from __future__ import annotations

import mujoco


def stay_awake(spec: mujoco.MjSpec) -> bool:
    """Switch the flag `sleep` off, and leave no body that is to start asleep; returns whether it was on."""
    was_on = bool(spec.option.enableflags & int(mujoco.mjtEnableBit.mjENBL_SLEEP))
    spec.option.enableflags &= ~int(mujoco.mjtEnableBit.mjENBL_SLEEP)
    for body in spec.bodies:
        if body.sleep != mujoco.mjtSleepPolicy.mjSLEEP_AUTO:
            body.sleep = mujoco.mjtSleepPolicy.mjSLEEP_AUTO
    return was_on
