"""What falls. "Up" is against gravity.

Something falls if gravity acts on it, its root has a free joint, or a slide that nothing stops, and no
constraint fastens it to what does not fall.
"""

from __future__ import annotations

import mujoco
import numpy as np
from numpy.typing import NDArray

from envs_gpu.scene.start_noise import flex_dofs

Array = NDArray[np.float64]
_TIES = (int(mujoco.mjtEq.mjEQ_CONNECT), int(mujoco.mjtEq.mjEQ_WELD))
_LEVEL = 0.1
"""A slide whose axis has a smaller cosine to gravity is level."""
_MAIN_SHARE = 0.5
"""A slide that carries a smaller share of its tree's weight is a part of the robot, not its base."""


def up_direction(model: mujoco.MjModel) -> Array | None:
    """The unit vector `[3]` against gravity; None where there is none."""
    strength = float(np.linalg.norm(model.opt.gravity))
    if strength == 0 or model.opt.disableflags & mujoco.mjtDisableBit.mjDSBL_GRAVITY:
        return None
    return -np.asarray(model.opt.gravity) / strength


def falling_roots(model: mujoco.MjModel, data: mujoco.MjData) -> list[int]:
    """The root bodies that fall, each with everything that it carries."""
    if up_direction(model) is None:
        return []
    free = model.jnt_bodyid[model.jnt_type == mujoco.mjtJoint.mjJNT_FREE].tolist()
    slides = model.body_rootid[model.jnt_bodyid[_loose_slides(model, data)]].tolist()
    weight = _weights(model)
    falling = {int(root) for root in (*free, *slides) if weight[root] > 0}
    ties = _tied_roots(model, data)
    while held := {a for a, b in ties if a in falling and b not in falling}:
        falling -= held
    return sorted(falling)


def falling_slides(model: mujoco.MjModel, data: mujoco.MjData) -> list[int]:
    """The slide joints along which a root falls, such as the vertical one of a planar base."""
    falling = falling_roots(model, data)
    if not falling:
        return []
    slides = _loose_slides(model, data)
    return [joint for joint in slides if model.body_rootid[model.jnt_bodyid[joint]] in falling]


def _weights(model: mujoco.MjModel) -> Array:
    """`[nbody]` the mass, kg, on which gravity acts, of each body with all that it carries."""
    weight = model.body_mass * (1.0 - model.body_gravcomp)
    for body in range(model.nbody - 1, 0, -1):
        weight[model.body_parentid[body]] += weight[body]
    return np.asarray(weight)


def _loose_slides(model: mujoco.MjModel, data: mujoco.MjData) -> list[int]:
    """The slides that let most of a tree move along gravity without end."""
    up, flags = up_direction(model), mujoco.mjtDisableBit
    slides = model.jnt_type == mujoco.mjtJoint.mjJNT_SLIDE
    if up is None or not slides.any():
        return []
    weight, body = _weights(model), model.jnt_bodyid
    slope = np.abs(data.xaxis @ up)
    pull = weight[body] * np.linalg.norm(model.opt.gravity) * slope  # N
    loose = slides & (slope > _LEVEL) & (model.dof_frictionloss[model.jnt_dofadr] < pull)
    loose &= weight[body] > _MAIN_SHARE * weight[model.body_rootid[body]]
    loose &= ~flex_dofs(model)[model.jnt_dofadr]
    if not model.opt.disableflags & flags.mjDSBL_LIMIT:
        loose &= model.jnt_limited == 0
    if not model.opt.disableflags & flags.mjDSBL_SPRING:
        loose &= (model.jnt_stiffness == 0) & (model.jnt_stiffnesspoly == 0).all(1)
    loose[_held_joints(model, data)] = False
    return np.flatnonzero(loose).tolist()


def _held_joints(model: mujoco.MjModel, data: mujoco.MjData) -> list[int]:
    """Joints that an actuator, a fixed tendon or an equality constraint acts on."""
    to_joint = (mujoco.mjtTrn.mjTRN_JOINT, mujoco.mjtTrn.mjTRN_JOINTINPARENT)
    driven = model.actuator_trntype == mujoco.mjtTrn.mjTRN_TENDON
    held = model.actuator_trnid[np.isin(model.actuator_trntype, to_joint), 0].tolist()
    tendons = {*model.actuator_trnid[driven, 0].tolist()}
    tendons |= {*np.flatnonzero((model.tendon_stiffness > 0) | (model.tendon_limited == 1)).tolist()}
    for tendon in tendons:
        first = model.tendon_adr[tendon]
        wraps = range(first, first + model.tendon_num[tendon])
        fixed = (wrap for wrap in wraps if model.wrap_type[wrap] == mujoco.mjtWrap.mjWRAP_JOINT)
        held += [int(model.wrap_objid[wrap]) for wrap in fixed]
    equal = (model.eq_type == mujoco.mjtEq.mjEQ_JOINT) & np.asarray(data.eq_active, bool)
    return [
        *held,
        *(id for ids in (model.eq_obj1id, model.eq_obj2id) for id in ids[equal].tolist() if id >= 0),
    ]


def _tied_roots(model: mujoco.MjModel, data: mujoco.MjData) -> set[tuple[int, int]]:
    """Pairs of root bodies (0 is the world) that an active `connect` or `weld` ties, both ways round."""
    ties: set[tuple[int, int]] = set()
    for number in np.flatnonzero(data.eq_active):
        if model.eq_type[number] not in _TIES:
            continue
        ends = (int(model.eq_obj1id[number]), int(model.eq_obj2id[number]))
        if model.eq_objtype[number] == mujoco.mjtObj.mjOBJ_SITE:
            ends = (int(model.site_bodyid[ends[0]]), int(model.site_bodyid[ends[1]]))
        first, second = (int(model.body_rootid[end]) for end in ends)
        ties |= {(first, second), (second, first)}
    return ties
