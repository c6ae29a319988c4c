"""What a robot stands on: ground that its file has, or a floor where something would fall for ever."""

from __future__ import annotations

from collections.abc import Sequence

import mujoco
import numpy as np
from numpy.typing import NDArray

from envs_gpu.scene.falling import falling_roots, up_direction
from envs_gpu.scene.ground import Ground, ground_below
from envs_gpu.scene.keyframe import unused_name
from envs_gpu.scene.lowest import lowest_of_flexes, lowest_of_geoms
from envs_gpu.scene.touch import colliding, flexes_of, geoms_of, touches_floor

_NOT_FROM_DEFAULTS = (
    *("condim", "priority", "friction", "solmix", "solref", "solimp", "margin", "gap", "surfacevel"),
    *("adhesion", "material", "rgba", "group", "hfieldname", "meshname", "fluid_coefs", "fromto"),
)
"""Fields of a floor that must not come from the model's default classes."""
_DEEP_M = 0.01
"""The start of a run names a contact that is deeper than this."""
_TOUCHES_M = 0.01
"""The start of a run says so if the robot's lowest point is further above the ground: it falls first."""


def provide_ground(
    spec: mujoco.MjSpec, model: mujoco.MjModel, data: mujoco.MjData, robot: Sequence[int]
) -> tuple[str, ...]:
    """Add a floor to `spec` where it is needed, and say what the robot stands on.

    Args:
        spec: may be changed.
        model: compiled from `spec` as it was.
        data: of `model`, at the start pose.
        robot: the root bodies of the robot.

    Returns:
        Sentences for the user.
    """
    grounds = {root: ground_below(model, data, root) for root in falling_roots(model, data)}
    own = [(root, ground) for root in robot if (ground := grounds.get(root)) is not None]
    notes = [_standing(model, data, root, ground) for root, ground in own]
    bare = [root for root, ground in grounds.items() if ground is None]
    lost = [root for root in bare if not _floor_carries(model, root)]
    if len(lost) < len(bare):
        height_m = add_floor(spec, model, data)
        notes.append(f"a floor was added below the robot, at a height of {height_m:.3g} m")
    if lost:
        names = ", ".join(_name(model, mujoco.mjtObj.mjOBJ_BODY, root) for root in lost)
        notes.append(
            f"no floor was added for {names}, which will fall: contype, conaffinity, <exclude> or a flag "
            "of the model keep it from touching one"
        )
    return tuple(dict.fromkeys([*notes, *_deepest_contact(model, data)]))


def lowest_point(model: mujoco.MjModel, data: mujoco.MjData) -> float | None:
    """Height, m, of the lowest point of all that moves and can touch a floor, with margin; None without any.

    Geoms and flexes count.
    """
    up = up_direction(model)
    assert up is not None
    geoms, flexes = touches_floor(model)
    moving = geoms & (model.body_weldid[model.geom_bodyid] != 0)
    lowest = (
        lowest_of_geoms(model, data, np.flatnonzero(moving).tolist(), up),
        lowest_of_flexes(model, data, np.flatnonzero(flexes).tolist(), up),
    )
    return min((height for height in lowest if height is not None), default=None)


def add_floor(spec: mujoco.MjSpec, model: mujoco.MjModel, data: mujoco.MjData) -> float:
    """Add a plane to `spec` right below everything that moves, which collides with all that can collide.

    Args:
        spec: is changed.
        model: compiled from `spec` as it was.
        data: of `model`, at the start pose.

    Returns:
        The floor's height along `up_direction`, m.
    """
    up, height = up_direction(model), lowest_point(model, data) or 0.0
    assert up is not None
    turn, pos = np.zeros(4), height * up
    mujoco.mju_quatZ2Vec(turn, up)
    name = unused_name("floor", [geom.name for geom in spec.geoms])
    plane = mujoco.mjtGeom.mjGEOM_PLANE
    floor = spec.worldbody.add_geom(name=name, type=plane, size=(0, 0, 0.05), pos=pos, quat=turn)
    empty = mujoco.MjSpec()
    plain = empty.worldbody.add_geom()
    for field in _NOT_FROM_DEFAULTS:
        setattr(floor, field, getattr(plain, field))
    geoms = colliding(model)
    floor.contype = _all_bits(model.geom_conaffinity[geoms], model.flex_conaffinity)
    floor.conaffinity = _all_bits(model.geom_contype[geoms], model.flex_contype)
    return height


def _floor_carries(model: mujoco.MjModel, root: int) -> bool:
    """Whether the body `root`, or what it carries, can touch a geom that is added to the world."""
    geoms, flexes = touches_floor(model)
    return bool(geoms[geoms_of(model, root)].any() or flexes[flexes_of(model, root)].any())


def _all_bits(*values: NDArray[np.int32]) -> int:
    return int(np.bitwise_or.reduce(np.concatenate(values)))


def _standing(model: mujoco.MjModel, data: mujoco.MjData, root: int, ground: Ground) -> str:
    up = up_direction(model)
    assert up is not None
    name = _name(model, mujoco.mjtObj.mjOBJ_GEOM, ground.geom)
    lowest = lowest_of_geoms(model, data, geoms_of(model, root), up)
    above_m = 0.0 if lowest is None else lowest - ground.height_m
    far = f", which is {above_m:.2g} m below it at the start" if above_m > _TOUCHES_M else ""
    return f"stands on {name}{far}"


def _deepest_contact(model: mujoco.MjModel, data: mujoco.MjData) -> list[str]:
    """A sentence about the deepest contact at the pose of `data`, if it is deep."""
    contacts = [contact for contact in data.contact if contact.exclude == 0]
    deepest = min(contacts, key=lambda contact: float(contact.dist), default=None)
    if deepest is None or deepest.dist > -_DEEP_M:
        return []
    sides = zip(deepest.geom.tolist(), deepest.flex.tolist(), strict=True)
    first, second = (
        _name(model, mujoco.mjtObj.mjOBJ_GEOM, geom)
        if geom >= 0
        else _name(model, mujoco.mjtObj.mjOBJ_FLEX, flex)
        for geom, flex in sides
    )
    return [f"at the start pose {first} and {second} are {-deepest.dist:.2g} m inside of each other"]


def _name(model: mujoco.MjModel, kind: mujoco.mjtObj, number: int) -> str:
    word = kind.name.removeprefix("mjOBJ_").lower()
    name = mujoco.mj_id2name(model, kind, number)
    return f"{word} {name!r}" if name else f"{word} number {number}"
