"""A robot that the user names: its file, what that may read, and the limits of its controls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import mujoco

from envs_gpu.control_limits import ControlLimit, limit_controls
from envs_gpu.model_files import ModelText
from envs_gpu.model_names import find_model
from envs_gpu.models import compile_model, compiled, load_with_text

MOST_SHOWN = 40
"""Limits in a report."""
_SLEEP = int(mujoco.mjtEnableBit.mjENBL_SLEEP)
_DRIVABLE = (mujoco.mjtJoint.mjJNT_HINGE, mujoco.mjtJoint.mjJNT_SLIDE)


@dataclass(frozen=True)
class LoadedModel:
    """A robot as it is simulated, and how that differs from its file."""

    spec: mujoco.MjSpec
    limits: tuple[ControlLimit, ...]
    """Those that the file does not have."""
    notes: tuple[str, ...]
    """Other changes, a sentence each."""

    def report(self) -> tuple[str, ...]:
        """A line for each change, and one for all limits."""
        if not self.limits:
            return self.notes
        shown = "; ".join(map(str, self.limits[:MOST_SHOWN]))
        more = len(self.limits) - MOST_SHOWN
        rest = f"; and {more} more" if more > 0 else ""
        return (*self.notes, f"control limits that the robot's file does not have: {shown}{rest}")


@dataclass(frozen=True)
class UserModel:
    """What the settings `env.model`, `env.model_root` and `env.limits` say."""

    name: str
    """An MJCF or URDF file, `menagerie:ROBOT/FILE`, or `robot_descriptions:NAME`."""
    root: str | None = None
    """The folder below which it may read; None is its own."""
    limits: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Of its controls, low and high."""

    @staticmethod
    def of(model: str | UserModel) -> UserModel:
        """`model`, or the one of that name."""
        return model if isinstance(model, UserModel) else UserModel(model)

    @property
    def path(self) -> str:
        """The file.

        Raises:
            SettingError: the name stands for a robot that is not on this machine.
        """
        return str(find_model(self.name, self.root).path)

    def load(self) -> LoadedModel:
        """Read the file, and give every control limits, as far as something bounds it.

        Raises:
            ModelError: the file is missing, or says what no model can mean.
            SettingError: a name or limit that fits nothing.
        """
        place = find_model(self.name, self.root)
        source, notes = str(place.path), []
        spec, text = load_with_text(place.path, root=place.root)
        if spec.option.enableflags & _SLEEP:
            spec.option.enableflags &= ~_SLEEP
            notes.append("sleep is turned off: no engine here lets bodies sleep")
        if text.is_urdf and not spec.actuators:
            added = _add_motors(spec, _mimics(text))
            notes.append(f"URDF has no actuators: {added} joints got a motor each")
        limits: tuple[ControlLimit, ...] = ()
        if self.limits or not all(map(_is_limited, spec.actuators)):
            limits = limit_controls(spec, compiled(spec.copy(), source), self.limits)
        return LoadedModel(spec, limits, tuple(notes))

    def check(self) -> None:
        """Load and compile it, to find mistakes early; errors as of `load` and `compile_model`."""
        compile_model(self.load().spec, self.path)


def drop_sensors(spec: mujoco.MjSpec) -> None:
    """Delete the sensors of `spec`, except those that a tuple names: without them it does not compile."""
    sensor = mujoco.mjtObj.mjOBJ_SENSOR
    kept = {
        name
        for one in spec.tuples
        for kind, name in zip(one.objtype, one.objname, strict=True)
        if kind == sensor
    }
    for one in spec.sensors:
        if one.name not in kept:
            spec.delete(one)


def _is_limited(actuator: mujoco.MjsActuator) -> bool:
    """Whether all controls of an actuator surely have limits."""
    low, high = actuator.ctrlrange
    has_one = actuator.velrange[0] == actuator.velrange[1] and actuator.gaintype != mujoco.mjtGain.mjGAIN_PID
    return bool(low < high and actuator.ctrllimited != mujoco.mjtLimited.mjLIMITED_FALSE and has_one)


def _mimics(text: ModelText) -> set[str]:
    """The joints of a URDF that follow another one."""
    joints = (element for element in text.elements if element.tag == "joint")
    return {
        joint.attributes.get("name", "")
        for joint in joints
        if any(child.tag == "mimic" for child in joint.children)
    }


def _add_motors(spec: mujoco.MjSpec, without: set[str]) -> int:
    """Give every hinge and slide a motor of its name, and say how many."""
    joints = [joint for joint in spec.joints if joint.type in _DRIVABLE and joint.name not in without]
    for joint in joints:
        motor = spec.add_actuator(name=joint.name, trntype=mujoco.mjtTrn.mjTRN_JOINT, target=joint.name)
        motor.set_to_motor()
    return len(joints)
