"""Motors that are far too strong for a policy: what they could do in one control step is limited.

Some robots' files give every motor the torque of the largest one. In full, such a motor spins a small wrist
several times within a control step: no policy can control that, and the simulation blows up.
"""

from __future__ import annotations

import copy
from collections.abc import Collection

import mujoco
import numpy as np
from numpy.typing import NDArray

from envs_gpu.actuators import controls
from envs_gpu.engine_log import Unheard

MOST_TURN_RAD = np.pi / 8
"""How far a joint may turn in a control step at the speed that it gains in one."""
MOST_SHIFT_M = 0.1
"""The same of a slide, and of a free joint's position."""
_HALVINGS = 40
_MOST_SHOWN = 4
_WARNING = mujoco.mjtWarning
_BLEW_UP = (_WARNING.mjWARN_BADQPOS, _WARNING.mjWARN_BADQVEL, _WARNING.mjWARN_BADQACC)

Array = NDArray[np.float64]


def narrow_motors(
    spec: mujoco.MjSpec,
    model: mujoco.MjModel,
    data: mujoco.MjData,
    control_dt_s: float,
    as_given: Collection[str],
) -> tuple[str, ...]:
    """Narrow the control ranges of motors that are too strong; returns lines for the start of a run.

    Only motors are looked at, which exert a force whatever the joint does; a servo stops at its target.

    Args:
        spec: is changed.
        model: compiled from `spec`.
        data: at the start pose, with the controls that hold it.
        control_dt_s: how long an action lasts.
        as_given: names of controls that keep their range.
    """
    trial, by_number = (
        _Trial(model, data, control_dt_s),
        {actuator.id: actuator for actuator in spec.actuators},
    )
    narrowed = []
    for control in controls(model):
        if control.name in as_given or not _is_motor(model, control.actuator):
            continue
        low, high = whole = model.actuator_ctrlrange[control.index].tolist()
        ends = [trial.bounded(control.index, end, (low, high)) for end in whole]
        if ends != whole:
            by_number[control.actuator].ctrlrange = ends
            shown = "[{:.3g}, {:.3g}] instead of [{:g}, {:g}]".format(*ends, *whole)
            narrowed.append(f"{control.name} {shown}")
    return _note(narrowed)


class _Trial:
    """Tries what a control does to the joints in one control step from the start pose, without contacts."""

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData, control_dt_s: float) -> None:
        self._model = copy.copy(model)
        self._model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_CONTACT
        self._start, self._data = data, mujoco.MjData(self._model)
        self._num_steps = max(1, round(control_dt_s / model.opt.timestep))
        self._most_speed = np.where(_shifts(model), MOST_SHIFT_M, MOST_TURN_RAD) / control_dt_s  # [nv]
        self._at_rest = self._speeds(None, 0.0)

    def bounded(self, index: int, end: float, limits: tuple[float, float]) -> float:
        """`end` of a control, or what is left of it where it is too much.

        A robot that blows up by itself says nothing about its motors.
        """
        if not np.isfinite(self._at_rest).all():
            return end
        held = float(np.clip(self._start.ctrl[index], *limits))
        for _ in range(_HALVINGS):
            if (self._speeds(index, end) - self._at_rest <= self._most_speed).all():
                break
            end = held + 0.5 * (end - held)
        return end

    def _speeds(self, index: int | None, ctrl: float) -> Array:
        """The largest speeds `[nv]` within a control step with one control changed; inf where C gives up."""
        model, data = self._model, self._data
        mujoco.mj_resetData(model, data)
        for name in ("qpos", "act", "ctrl", "mocap_pos", "mocap_quat", "eq_active"):
            getattr(data, name)[:] = getattr(self._start, name)
        if index is not None:
            data.ctrl[index] = ctrl
        speeds = np.abs(data.qvel)
        with Unheard():
            for _ in range(self._num_steps):
                mujoco.mj_step(model, data)
                speeds = np.maximum(speeds, np.abs(data.qvel))
        # C begins again from the reference configuration, at rest, where a state is not finite.
        if any(data.warning[kind].number for kind in _BLEW_UP):
            return np.full(model.nv, np.inf)
        return speeds


def _shifts(model: mujoco.MjModel) -> NDArray[np.bool_]:
    """`[nv]` whether a degree of freedom is a way, and not an angle."""
    shifts = model.jnt_type[model.dof_jntid] == mujoco.mjtJoint.mjJNT_SLIDE
    for first in model.jnt_dofadr[model.jnt_type == mujoco.mjtJoint.mjJNT_FREE]:
        shifts[first : first + 3] = True
    return shifts


def _is_motor(model: mujoco.MjModel, actuator: int) -> bool:
    return bool(
        model.actuator_gaintype[actuator] == mujoco.mjtGain.mjGAIN_FIXED
        and model.actuator_biastype[actuator] == mujoco.mjtBias.mjBIAS_NONE
        and model.actuator_dyntype[actuator] == mujoco.mjtDyn.mjDYN_NONE
        and model.actuator_plugin[actuator] < 0
    )


def _note(narrowed: list[str]) -> tuple[str, ...]:
    if not narrowed:
        return ()
    more = len(narrowed) - _MOST_SHOWN
    rest = f"; and {more} more" if more > 0 else ""
    shown = "; ".join(narrowed[:_MOST_SHOWN])
    return (f"motors too strong for their joints are used in part (env.limits sets them): {shown}{rest}",)
