"""The lowest points of geoms and flexes."""

from __future__ import annotations

from collections.abc import Iterable

import mujoco
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_GEOM = mujoco.mjtGeom


def lowest_of_geoms(
    model: mujoco.MjModel, data: mujoco.MjData, geoms: Iterable[int], up: Array
) -> float | None:
    """Height, m, along `up` `[3]` of the lowest point of `geoms`, with margin; None without any."""
    heights = (_lowest_of(model, data, geom, up) - _margin(model, model.geom_margin[geom]) for geom in geoms)
    return min(heights, default=None)


def lowest_of_flexes(
    model: mujoco.MjModel, data: mujoco.MjData, flexes: Iterable[int], up: Array
) -> float | None:
    """Height, m, along `up` `[3]` of the lowest vertex that moves, with radius and margin; None without."""
    heights = []
    for flex in flexes:
        first = model.flex_vertadr[flex]
        vertices = slice(first, first + model.flex_vertnum[flex])
        bodies = model.flex_vertbodyid[vertices]
        moves = (bodies < 0) | (model.body_weldid[bodies] != 0)  # no body: interpolated between nodes
        if moves.any():
            thick = float(model.flex_radius[flex]) + _margin(model, model.flex_margin[flex])
            heights.append(float((data.flexvert_xpos[vertices][moves] @ up).min()) - thick)
    return min(heights, default=None)


def _margin(model: mujoco.MjModel, own: float) -> float:
    """The margin of a contact, m, which a flag of the model overrides."""
    overridden = model.opt.enableflags & mujoco.mjtEnableBit.mjENBL_OVERRIDE
    return float(model.opt.o_margin if overridden else own)


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
