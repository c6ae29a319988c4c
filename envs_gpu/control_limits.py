"""Limits of controls that a robot's file leaves open: set by the user, or inferred from what bounds them.

An action needs a scale. Where an actuator has no `ctrlrange`, it follows from what the actuator drives: the
range of the joint for a position servo, the largest force for a motor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import mujoco
import numpy as np

from envs_gpu.actuators import Control, actuator_of_output, controls
from envs_gpu.errors import SettingError
from envs_gpu.registry import nearest

_GAIN, _BIAS, _DYN, _TRN = mujoco.mjtGain, mujoco.mjtBias, mujoco.mjtDyn, mujoco.mjtTrn
_JOINTS = (int(_TRN.mjTRN_JOINT), int(_TRN.mjTRN_JOINTINPARENT))
_NUMBERS = (int(mujoco.mjtJoint.mjJNT_HINGE), int(mujoco.mjtJoint.mjJNT_SLIDE))
_FIELDS = {"velocity": "velrange", "force": "ffrange"}
"""Where MJCF has the range of a control of an actuator with several; `ctrlrange` for the others."""
_PLAIN_BIASES = (int(_BIAS.mjBIAS_NONE), int(_BIAS.mjBIAS_AFFINE))
_PID = "mujoco.pid"


@dataclass(frozen=True)
class ControlLimit:
    """A limit that the robot's file does not have."""

    name: str
    """The control's, as in `env.limits`."""
    low: float
    high: float
    why: str
    """Where it comes from, such as `range of joint 'knee'`."""

    def __str__(self) -> str:
        return f"{self.name} [{self.low:g}, {self.high:g}] ({self.why})"


@dataclass(frozen=True)
class _Bound:
    low: float
    high: float
    why: str

    def mapped(self, scale: float, offset: float = 0.0, why: str = "") -> _Bound | None:
        """`(bound - offset) / scale`; None for a scale of zero."""
        if scale == 0:
            return None
        low, high = sorted(((self.low - offset) / scale, (self.high - offset) / scale))
        return _Bound(low, high, self.why + why)


def limit_controls(
    spec: mujoco.MjSpec, model: mujoco.MjModel, given: Mapping[str, tuple[float, float]]
) -> tuple[ControlLimit, ...]:
    """Give the controls of `spec` the limits that are `given`, and infer those that are missing.

    Controls that nothing bounds stay as they are.

    Args:
        spec: is changed.
        model: compiled from `spec`.
        given: control -> low and high, as in `env.limits`.

    Raises:
        SettingError: `given` names no control of the model.
    """
    _check_given(given, model)
    limits = []
    by_number = {actuator.id: actuator for actuator in spec.actuators}
    for control in controls(model):
        if control.name in given:
            bound: _Bound | None = _Bound(*given[control.name], "env.limits")
        elif model.actuator_ctrllimited[control.index]:
            continue
        else:
            bound = _inferred(model, control, by_number[control.actuator])
        if bound is None or not (math.isfinite(bound.low) and math.isfinite(bound.high)):
            continue
        if bound.low < bound.high:
            _write(by_number[control.actuator], control, bound)
            limits.append(ControlLimit(control.name, bound.low, bound.high, bound.why))
    return tuple({limit.name: limit for limit in limits}.values())  # an orientation has one for all three


def _check_given(given: Mapping[str, tuple[float, float]], model: mujoco.MjModel) -> None:
    names = [control.name for control in controls(model)]
    for name, limit in given.items():
        field, value = f"env.limits.{name}", list(limit)
        if name not in names:
            guess = nearest(name, names)
            hint = f"did you mean {guess!r}? " if guess else ""
            raise SettingError(
                field, value, "the robot has no such control", f"{hint}known: {', '.join(names)}"
            )
        if not (math.isfinite(limit[0]) and math.isfinite(limit[1]) and limit[0] < limit[1]):
            raise SettingError(field, value, "is no range", "write [low, high] with low below high")


def _write(actuator: mujoco.MjsActuator, control: Control, bound: _Bound) -> None:
    # `ctrlrange` belongs to the first control of an actuator, of every type.
    field = _FIELDS.get(control.input, "ctrlrange") if control.suffix else "ctrlrange"
    setattr(actuator, field, (bound.low, bound.high))
    actuator.ctrllimited = mujoco.mjtLimited.mjLIMITED_TRUE


def _inferred(model: mujoco.MjModel, control: Control, spec: mujoco.MjsActuator) -> _Bound | None:
    """What bounds a control; None where nothing does."""
    index = control.actuator
    low, high = model.actuator_ctrlrange[control.index]
    if low < high:
        return _Bound(float(low), float(high), "its ctrlrange, which ctrllimited turns off")
    gain, dynamics = model.actuator_gaintype[index], model.actuator_dyntype[index]
    if dynamics == _DYN.mjDYN_MUSCLE or gain == _GAIN.mjGAIN_MUSCLE:
        return _Bound(0.0, 1.0, "a muscle's activation")
    if gain == _GAIN.mjGAIN_SO3:
        return _rotation(model, index)
    if model.actuator_plugin[index] >= 0:
        return _length(model, index) if spec.plugin.plugin_name == _PID else None
    if gain == _GAIN.mjGAIN_PID:
        return _of_pid(model, control)
    if gain == _GAIN.mjGAIN_DCMOTOR:
        resistance, constant = model.actuator_gainprm[index, :2]
        force = _force(model, index)
        return force.mapped(constant / resistance, 0.0, " at standstill") if force and resistance else None
    if gain != _GAIN.mjGAIN_FIXED or model.actuator_biastype[index] not in _PLAIN_BIASES:
        return None
    if dynamics == _DYN.mjDYN_INTEGRATOR:
        return _rate(model, index)
    return None if dynamics == _DYN.mjDYN_USER else _steady(model, index)


def _steady(model: mujoco.MjModel, index: int) -> _Bound | None:
    """The bound of an input that holds a position, a velocity, or a force."""
    gain = float(model.actuator_gainprm[index, 0])
    is_affine = model.actuator_biastype[index] == _BIAS.mjBIAS_AFFINE
    constant, stiffness, damping = map(float, model.actuator_biasprm[index, :3] if is_affine else (0, 0, 0))
    if stiffness:  # force = gain ctrl + constant + stiffness length: it rests where that is zero
        length = _length(model, index)
        if length is None:
            return None
        reach = length.mapped(-1 / stiffness)
        return reach.mapped(gain, constant) if reach else None
    force = _force(model, index)
    return force.mapped(gain, constant, ", at standstill" if damping else "") if force else None


def _rate(model: mujoco.MjModel, index: int) -> _Bound | None:
    """The bound of an input that is integrated: it crosses the range of its integral in one second."""
    if model.actuator_actlimited[index]:
        low, high = model.actuator_actrange[index]
        whole: _Bound | None = _Bound(float(low), float(high), "its actrange")
    else:
        whole = _steady(model, index)
    if whole is None:
        return None
    width = whole.high - whole.low
    return _Bound(-width, width, f"{whole.why}, crossed in one second")


def _of_pid(model: mujoco.MjModel, control: Control) -> _Bound | None:
    if control.input == "force":
        return _force(model, control.actuator)
    length = _length(model, control.actuator)
    if length is None or control.input != "velocity":
        return length
    width = length.high - length.low
    return _Bound(-width, width, f"{length.why}, crossed in one second")


def _rotation(model: mujoco.MjModel, index: int) -> _Bound:
    """Of each number of an orientation's target."""
    if model.actuator_ctrlnum[index] == 4:
        return _Bound(-1.0, 1.0, "a quaternion's entries")
    joint = int(model.actuator_trnid[index, 0])
    if model.actuator_trntype[index] != _TRN.mjTRN_SITE and joint >= 0 and model.jnt_limited[joint]:
        angle = float(model.jnt_range[joint, 1])
        return _Bound(-angle, angle, f"range of joint {model.joint(joint).name!r}")
    return _Bound(-math.pi, math.pi, "half a turn")


def _length(model: mujoco.MjModel, index: int) -> _Bound | None:
    """How far the actuator reaches, in its own unit of length."""
    kind, target = model.actuator_trntype[index], int(model.actuator_trnid[index, 0])
    gear, reach = _gear(model, index), _output(model.actuator_lengthrange, model, index)
    if kind in _JOINTS and model.jnt_type[target] in _NUMBERS and model.jnt_limited[target]:
        why = f"range of joint {model.joint(target).name!r}"
        return _scaled(model.jnt_range[target], gear, why)
    if kind == _TRN.mjTRN_TENDON and model.tendon_limited[target]:
        return _scaled(model.tendon_range[target], gear, f"range of tendon {model.tendon(target).name!r}")
    return _Bound(float(reach[0]), float(reach[1]), "its lengthrange") if reach[0] < reach[1] else None


def _force(model: mujoco.MjModel, index: int) -> _Bound | None:
    """The smallest of the limits of the actuator's force."""
    bounds = []
    if model.actuator_forcelimited[index]:
        low, high = model.actuator_forcerange[index]
        bounds.append(_Bound(float(low), float(high), "its forcerange"))
    kind, target, gear = (
        model.actuator_trntype[index],
        int(model.actuator_trnid[index, 0]),
        _gear(model, index),
    )
    if kind in _JOINTS and model.jnt_type[target] in _NUMBERS and model.jnt_actfrclimited[target] and gear:
        why = f"actuatorfrcrange of joint {model.joint(target).name!r}"
        bounds.append(_scaled(model.jnt_actfrcrange[target], 1 / gear, why))
    if kind == _TRN.mjTRN_TENDON and model.tendon_actfrclimited[target] and gear:
        why = f"actuatorfrcrange of tendon {model.tendon(target).name!r}"
        bounds.append(_scaled(model.tendon_actfrcrange[target], 1 / gear, why))
    return min(bounds, key=lambda bound: bound.high - bound.low, default=None)


def _scaled(bounds: np.ndarray, factor: float, why: str) -> _Bound:
    low, high = sorted(float(end) * factor for end in bounds)
    return _Bound(low, high, why)


def _gear(model: mujoco.MjModel, index: int) -> float:
    return float(_output(model.actuator_gear, model, index)[0])


def _output(values: np.ndarray, model: mujoco.MjModel, index: int) -> np.ndarray:
    """The row of an actuator's first force."""
    return values[int(np.flatnonzero(actuator_of_output(model) == index)[0])]
