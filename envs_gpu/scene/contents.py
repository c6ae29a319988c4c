"""What is in a compiled scene: bodies, joints, actuators, loops."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import mujoco
import numpy as np

from envs_gpu.actuators import Control, controls

_JOINTS = {
    mujoco.mjtJoint.mjJNT_FREE: "free",
    mujoco.mjtJoint.mjJNT_BALL: "ball",
    mujoco.mjtJoint.mjJNT_SLIDE: "slide",
    mujoco.mjtJoint.mjJNT_HINGE: "hinge",
}
_EQUALITIES = {
    int(kind): kind.name.removeprefix("mjEQ_").lower() for kind in mujoco.mjtEq.__members__.values()
}


@dataclass(frozen=True)
class Actuator:
    """A control of the robot."""

    name: str
    drives: str
    """The joint, tendon, site or body, with its kind."""
    low: float
    high: float
    """In the unit of the control."""


@dataclass(frozen=True)
class Contents:
    """What is in a scene."""

    num_bodies: int
    joints: dict[str, int]
    """Kind -> number."""
    num_dofs: int
    mass_kg: float
    actuators: tuple[Actuator, ...]
    keyframes: tuple[str, ...]
    loops: dict[str, int]
    """Kind of an equality constraint that is active at the start -> number."""
    num_flexes: int
    timestep_s: float

    def __str__(self) -> str:
        kinds = ", ".join(f"{number} {kind}" for kind, number in self.joints.items()) or "no joints"
        return (
            f"{self.num_bodies} bodies ({self.mass_kg:.4g} kg), joints: {kinds}; {self.num_dofs} degrees of "
            f"freedom, {len(self.actuators)} controls, timestep {self.timestep_s:g} s"
        )


def contents_of(model: mujoco.MjModel) -> Contents:
    """Count what is in a compiled scene."""
    joints = Counter(_JOINTS[mujoco.mjtJoint(kind)] for kind in model.jnt_type)
    active = model.eq_type[np.asarray(model.eq_active0, dtype=bool)]
    return Contents(
        num_bodies=model.nbody - 1,
        joints=dict(joints),
        num_dofs=model.nv,
        mass_kg=float(model.body_mass.sum()),
        actuators=tuple(_actuator(model, control) for control in controls(model)),
        keyframes=tuple(model.key(index).name or f"number {index}" for index in range(model.nkey)),
        loops=dict(Counter(_EQUALITIES[int(kind)] for kind in active)),
        num_flexes=model.nflex,
        timestep_s=model.opt.timestep,
    )


def tear_of(model: mujoco.MjModel, qpos: np.ndarray) -> float:
    """The largest violation of an equality constraint in the position `qpos` `[nq]`, in m or rad."""
    data = mujoco.MjData(model)
    data.qpos[:] = qpos
    mujoco.mj_forward(model, data)
    rows = data.efc_type[: data.nefc] == mujoco.mjtConstraint.mjCNSTR_EQUALITY
    return float(np.abs(data.efc_pos[: data.nefc][rows]).max(initial=0.0))


def _actuator(model: mujoco.MjModel, control: Control) -> Actuator:
    low, high = model.actuator_ctrlrange[control.index]
    return Actuator(control.name, _driven(model, control.actuator), float(low), float(high))


def _driven(model: mujoco.MjModel, index: int) -> str:
    kind = mujoco.mjtTrn(model.actuator_trntype[index])
    target = int(model.actuator_trnid[index, 0])
    for kinds, word in (
        ((mujoco.mjtTrn.mjTRN_JOINT, mujoco.mjtTrn.mjTRN_JOINTINPARENT, mujoco.mjtTrn.mjTRN_SO3), "joint"),
        ((mujoco.mjtTrn.mjTRN_TENDON,), "tendon"),
        ((mujoco.mjtTrn.mjTRN_SITE, mujoco.mjtTrn.mjTRN_SLIDERCRANK), "site"),
        ((mujoco.mjtTrn.mjTRN_BODY,), "body"),
    ):
        if kind in kinds:
            name = getattr(model, word)(target).name or f"number {target}"
            return f"{word} {name}"
    return "nothing"
