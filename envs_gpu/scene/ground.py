"""What is below a robot, of what there is already."""

from __future__ import annotations

import copy
from typing import NamedTuple

import mujoco
import numpy as np
from numpy.typing import NDArray

from envs_gpu.scene.falling import falling_roots, up_direction
from envs_gpu.scene.touch import geoms_of, touches_root

Array = NDArray[np.float64]
_PLANE = mujoco.mjtGeom.mjGEOM_PLANE
_SHOWN, _HIDDEN = 0, 5
"""Groups of geoms that a ray hits, and does not hit."""
_LEAST_COSINE = 0.5
"""Of the angle between up and the normal of a surface that carries: 60 degrees."""
_REACH, _LEAST_REACH_M = 5.0, 5.0
"""Ground is no further below than this many extents of the scene, or than a second of free fall."""


class Ground(NamedTuple):
    """What carries a body."""

    height_m: float
    """Along `up_direction`."""
    geom: int


def ground_below(model: mujoco.MjModel, data: mujoco.MjData, root: int) -> Ground | None:
    """What is below the body `root` and all that it carries; None where nothing is.

    Ground is a geom that can touch the body, does not fall, is at most 60 degrees steep where a ray hits it,
    and is no further below than five extents of the scene, or 5 m if that is more. A ray down from the
    center of mass decides. Where it hits nothing, rays from the centers of the body's geoms decide: half of
    them must hit something, and the highest hit is the ground. A plane is also ground for what is below its
    surface, because its inside has no end.
    """
    up = up_direction(model)
    assert up is not None
    rays = _Rays(model, data, root, up)
    if (found := rays.down(data.subtree_com[root])) is not None:
        return found
    geoms = geoms_of(model, root)
    hits = [hit for geom in geoms if (hit := rays.down(data.geom_xpos[geom])) is not None]
    return max(hits) if hits and 2 * len(hits) >= len(geoms) else None


class _Rays:
    """Rays that hit only what can carry one body."""

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData, root: int, up: Array) -> None:
        self._data, self._up = data, up
        self._reach_m = max(_REACH * _extent_m(model, data), _LEAST_REACH_M)
        self._solid = copy.copy(model)
        roots = model.body_rootid[model.geom_bodyid]
        carries = touches_root(model, root) & ~np.isin(roots, [*falling_roots(model, data), root])
        plane = model.geom_type == _PLANE
        self._planes = np.flatnonzero(carries & plane).tolist()
        self._solid.geom_group[:] = np.where(carries & ~plane, _SHOWN, _HIDDEN)
        self._solid.geom_matid[:], self._solid.geom_rgba[:, 3] = -1, 1.0  # rays pass what is transparent

    def down(self, point: Array) -> Ground | None:
        """The highest ground below `point` `[3]`, or the plane in which it is."""
        planes = (self._plane_at(geom, point) for geom in self._planes)
        found = [ground for ground in (*planes, self._first_hit(point)) if ground is not None]
        return max(found, default=None)

    def _plane_at(self, geom: int, point: Array) -> Ground | None:
        normal = self._data.geom_xmat[geom].reshape(3, 3)[:, 2]
        cosine = float(normal @ self._up)
        if cosine < _LEAST_COSINE:
            return None
        distance = float(normal @ (point - self._data.geom_xpos[geom])) / cosine
        if distance > self._reach_m:
            return None
        return Ground(float(point @ self._up) - distance, geom)

    def _first_hit(self, point: Array) -> Ground | None:
        """The first surface below `point` of what is not a plane; a geom that is steep there is passed."""
        groups, passed = np.arange(mujoco.mjNGROUP) == _SHOWN, []
        geom, normal = np.full(1, -1, np.int32), np.zeros(3)
        found = None
        while True:
            distance = mujoco.mj_ray(
                self._solid, self._data, point, -self._up, groups.astype(np.uint8), True, -1, geom, normal
            )
            if geom[0] < 0 or distance > self._reach_m:
                break
            if abs(normal @ self._up) >= _LEAST_COSINE:
                found = Ground(float(point @ self._up) - distance, int(geom[0]))
                break
            passed.append(int(geom[0]))
            self._solid.geom_group[passed] = _HIDDEN
        self._solid.geom_group[passed] = _SHOWN
        return found


def _extent_m(model: mujoco.MjModel, data: mujoco.MjData) -> float:
    """The diagonal, m, of a box around all geoms but planes, which have no end."""
    ends = model.geom_type != _PLANE
    if not ends.any():
        return 0.0
    center, radius = data.geom_xpos[ends], model.geom_rbound[ends][:, None]
    return float(np.linalg.norm((center + radius).max(0) - (center - radius).min(0)))
