"""What a robot stands on: whether something is below what falls, and a floor where nothing is.

"Up" is against gravity. Something falls if its root has a free joint, gravity acts on it, and no constraint
fastens it to what does not fall.
"""

from __future__ import annotations

import copy

import mujoco
import numpy as np
from numpy.typing import NDArray

from envs_gpu.scene.keyframe import unused_name

Array = NDArray[np.float64]
_GEOM = mujoco.mjtGeom
_TIES = (int(mujoco.mjtEq.mjEQ_CONNECT), int(mujoco.mjtEq.mjEQ_WELD))
_OWN = (
    *("condim", "priority", "friction", "solmix", "solref", "solimp", "margin", "gap", "surfacevel"),
    *("adhesion", "material", "rgba", "group", "hfieldname", "meshname", "fluid_coefs", "fromto"),
)
"""What a floor does not take from the model's default classes."""
_SHOWN, _HIDDEN = 0, 5
"""Groups of geoms that a ray hits, and does not hit."""


def up_direction(model: mujoco.MjModel) -> Array | None:
    """The unit vector `[3]` against gravity; None where there is none."""
    strength = float(np.linalg.norm(model.opt.gravity))
    if strength == 0 or model.opt.disableflags & mujoco.mjtDisableBit.mjDSBL_GRAVITY:
        return None
    return -np.asarray(model.opt.gravity) / strength


def falling_roots(model: mujoco.MjModel, data: mujoco.MjData) -> list[int]:
    """The bodies with a free joint that fall, each with everything that it carries."""
    if up_direction(model) is None:
        return []
    free = model.jnt_bodyid[model.jnt_type == mujoco.mjtJoint.mjJNT_FREE]
    weight = model.body_mass * (1.0 - model.body_gravcomp)
    falling = {int(body) for body in free if weight[model.body_rootid == body].sum() > 0}
    ties = _tied_roots(model, data)
    while held := {a for a, b in ties if a in falling and b not in falling}:
        falling -= held
    return sorted(falling)


def ground_below(model: mujoco.MjModel, data: mujoco.MjData, root: int) -> float | None:
    """The height, m, of what is below the body `root` and all that it carries; None where nothing is.

    Heights are along `up_direction`. A ray down from the center of mass decides; where it hits nothing, rays
    from the body's geoms, half of which must hit something.
    """
    up = up_direction(model)
    assert up is not None
    solid = _only_ground(model, data, root)
    geoms = [g for g in _colliding(model) if model.body_rootid[model.geom_bodyid[g]] == root]
    center = data.subtree_com[root]
    if (height := _height_below(solid, data, center, up)) is not None:
        return height
    heights = [_height_below(solid, data, data.geom_xpos[geom], up) for geom in geoms]
    hit = [height for height in heights if height is not None]
    return max(hit) if 2 * len(hit) >= max(len(heights), 1) else None


def lowest_point(model: mujoco.MjModel, data: mujoco.MjData) -> float | None:
    """Height, m, of the lowest point of all geoms that move and collide, with margin; None without any."""
    up = up_direction(model)
    assert up is not None
    geoms = _colliding(model) or list(range(model.ngeom))
    moving = [geom for geom in geoms if model.body_weldid[model.geom_bodyid[geom]]]
    heights = (_lowest_of(model, data, geom, up) - model.geom_margin[geom] for geom in moving)
    return min(heights, default=None)


def needs_floor(model: mujoco.MjModel, data: mujoco.MjData) -> bool:
    """Whether something falls with nothing below it."""
    return any(ground_below(model, data, root) is None for root in falling_roots(model, data))


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
    plane = _GEOM.mjGEOM_PLANE
    floor = spec.worldbody.add_geom(name=name, type=plane, size=(0, 0, 0.05), pos=pos, quat=turn)
    empty = mujoco.MjSpec()
    plain = empty.worldbody.add_geom()
    for field in _OWN:
        setattr(floor, field, getattr(plain, field))
    geoms = _colliding(model)
    floor.contype = _all_bits(model.geom_conaffinity[geoms]) or 1
    floor.conaffinity = _all_bits(model.geom_contype[geoms]) or 1
    return height


def _all_bits(values: NDArray[np.int32]) -> int:
    return int(np.bitwise_or.reduce(values)) if len(values) else 0


def _colliding(model: mujoco.MjModel) -> list[int]:
    """The geoms that can touch anything."""
    return np.flatnonzero(model.geom_contype | model.geom_conaffinity).tolist()


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


def _only_ground(model: mujoco.MjModel, data: mujoco.MjData, root: int) -> mujoco.MjModel:
    """A copy of `model` in which a ray hits only what can carry the body `root`."""
    solid = copy.copy(model)
    roots = model.body_rootid[model.geom_bodyid]
    carries = ~np.isin(roots, [*falling_roots(model, data), root])
    carries &= (model.geom_contype | model.geom_conaffinity) != 0
    solid.geom_group[:] = np.where(carries, _SHOWN, _HIDDEN)
    solid.geom_matid[:], solid.geom_rgba[:, 3] = -1, 1.0  # rays go through what is transparent
    solid.geom_size[model.geom_type == _GEOM.mjGEOM_PLANE, :2] = 0.0  # their size is for pictures alone
    return solid


def _height_below(solid: mujoco.MjModel, data: mujoco.MjData, point: Array, up: Array) -> float | None:
    shown = np.zeros(mujoco.mjNGROUP, np.uint8)
    shown[_SHOWN] = 1
    geom = np.full(1, -1, np.int32)
    distance = mujoco.mj_ray(solid, data, point, -up, shown, True, -1, geom)
    return None if geom[0] < 0 else float(point @ up) - distance


def _lowest_of(model: mujoco.MjModel, data: mujoco.MjData, geom: int, up: Array) -> float:
    """Height of the lowest point of a geom."""
    kind, size = model.geom_type[geom], model.geom_size[geom]
    turn = data.geom_xmat[geom].reshape(3, 3)
    own = up @ turn  # the direction up in the geom's frame
    middle = float(data.geom_xpos[geom] @ up)
    if kind == _GEOM.mjGEOM_SPHERE:
        return middle - size[0]
    if kind == _GEOM.mjGEOM_CAPSULE:
        return middle - abs(own[2]) * size[1] - size[0]
    if kind == _GEOM.mjGEOM_CYLINDER:
        return middle - abs(own[2]) * size[1] - size[0] * float(np.hypot(own[0], own[1]))
    if kind == _GEOM.mjGEOM_ELLIPSOID:
        return middle - float(np.linalg.norm(own * size))
    if kind == _GEOM.mjGEOM_BOX:
        return middle - float(np.abs(own) @ size)
    if kind == _GEOM.mjGEOM_MESH:
        mesh = model.geom_dataid[geom]
        first, count = model.mesh_vertadr[mesh], model.mesh_vertnum[mesh]
        return middle + float((model.mesh_vert[first : first + count] @ own).min())
    return middle - float(model.geom_rbound[geom])
