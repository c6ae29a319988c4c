"""What each control of a model does: MuJoCo's actuators may have several controls, and several forces.

Letters: nu controls.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import mujoco
import numpy as np
from numpy.typing import NDArray

_INPUTS = {
    int(mujoco.mjtCtrlInput.mjINPUT_POS): "position",
    int(mujoco.mjtCtrlInput.mjINPUT_VEL): "velocity",
    int(mujoco.mjtCtrlInput.mjINPUT_FF): "force",
    int(mujoco.mjtCtrlInput.mjINPUT_VOLTAGE): "voltage",
    int(mujoco.mjtCtrlInput.mjINPUT_PRESSURE): "pressure",
}
_ON_JOINT = (
    int(mujoco.mjtTrn.mjTRN_JOINT),
    int(mujoco.mjtTrn.mjTRN_JOINTINPARENT),
    int(mujoco.mjtTrn.mjTRN_SO3),
)


@dataclass(frozen=True)
class Control:
    """One number of `ctrl`."""

    index: int
    """In `ctrl`."""
    actuator: int
    """The number of its actuator."""
    name: str
    """The actuator's, or `actuator_3`; all but the first input of an actuator with several have a suffix."""
    input: str
    """`position`, `velocity`, `force`, ...; `rotation` for each of an orientation's; empty where unknown."""
    suffix: str
    """Tells the controls of one actuator apart: `_x`, `_velocity`; empty for an actuator with one."""


def controls(model: mujoco.MjModel) -> tuple[Control, ...]:
    """Every control of a model, `[nu]`."""
    found = []
    for actuator in range(model.nactuator):
        first, count = int(model.actuator_ctrladr[actuator]), int(model.actuator_ctrlnum[actuator])
        name = actuator_name(model, actuator)
        for number, kind in enumerate(_inputs(model, actuator, count)):
            is_rotation = kind == "rotation"
            suffix = "" if count == 1 else f"_{'xyzw'[number]}" if is_rotation else f"_{kind}"
            setting = name if is_rotation or number == 0 else name + suffix
            found.append(Control(first + number, actuator, setting, kind, suffix))
    return tuple(found)


def actuator_name(model: mujoco.MjModel, actuator: int) -> str:
    """What to call an actuator: its name, or its number."""
    return model.actuator(actuator).name or f"actuator_{actuator}"


def actuator_of_output(model: mujoco.MjModel) -> NDArray[np.int64]:
    """The actuator of every force that actuators put out, in the order of `actuator_gear` and `moment`."""
    return np.repeat(np.arange(model.nactuator), model.actuator_outnum)


def drives_joint(model: mujoco.MjModel) -> np.ndarray:
    """Bool for each actuator: it moves a joint, and not a tendon or a site."""
    return np.isin(model.actuator_trntype, _ON_JOINT)


def driven_joints(model: mujoco.MjModel) -> tuple[str, ...]:
    """`[nu]` the joint that each control drives; the actuator's own name where that drives something else.

    No two are equal. The controls of an actuator with several have a suffix: `wrist_x`, `knee_velocity`.
    Where several actuators drive a joint, the actuator's name follows: `knee_servo`, `knee_damper`.
    """
    on_joint = drives_joint(model)
    short, long = [], []
    for control in controls(model):
        actuator, own = control.actuator, actuator_name(model, control.actuator)
        joint = model.joint(model.actuator_trnid[actuator, 0]).name if on_joint[actuator] else ""
        short.append((joint or own) + control.suffix)
        long.append((f"{joint}_{own}" if joint else own) + control.suffix)
    count = Counter(short)
    return _distinct([name if count[name] == 1 else full for name, full in zip(short, long, strict=True)])


def _distinct(names: list[str]) -> tuple[str, ...]:
    """`names`, with a number behind each that is equal to an earlier one: `a`, `b`, `a_2`."""
    given: list[str] = []
    for name in names:
        candidate, number = name, 1
        while candidate in given or (number > 1 and candidate in names):
            number += 1
            candidate = f"{name}_{number}"
        given.append(candidate)
    return tuple(given)


def _inputs(model: mujoco.MjModel, actuator: int, count: int) -> list[str]:
    """What each of an actuator's `count` controls is."""
    if model.actuator_gaintype[actuator] == mujoco.mjtGain.mjGAIN_SO3:
        return ["rotation"] * count
    asked = int(model.actuator_ctrlspec[actuator])
    inputs = [name for bit, name in _INPUTS.items() if asked & bit]
    return (
        inputs
        if len(inputs) == count
        else [f"control_{number}" if count > 1 else "" for number in range(count)]
    )
