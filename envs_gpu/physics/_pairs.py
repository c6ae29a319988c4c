"""Which geoms of a model can meet, and by which kind of search C MuJoCo finds where."""

from __future__ import annotations

import mujoco
import numpy as np

_GEOM = mujoco.mjtGeom
_PLANE, _SPHERE, _CAPSULE, _HFIELD = (
    int(kind) for kind in (_GEOM.mjGEOM_PLANE, _GEOM.mjGEOM_SPHERE, _GEOM.mjGEOM_CAPSULE, _GEOM.mjGEOM_HFIELD)
)
_ELLIPSOID, _CYLINDER, _BOX, _MESH = (
    int(kind) for kind in (_GEOM.mjGEOM_ELLIPSOID, _GEOM.mjGEOM_CYLINDER, _GEOM.mjGEOM_BOX, _GEOM.mjGEOM_MESH)
)
_SOLID = (_SPHERE, _CAPSULE, _ELLIPSOID, _CYLINDER, _BOX, _MESH)


def _with(kind: int, *others: int) -> set[frozenset[int]]:
    return {frozenset((kind, other)) for other in others}


CONVEX = frozenset(
    _with(_HFIELD, *_SOLID)
    | _with(_MESH, *_SOLID)
    | _with(_ELLIPSOID, *_SOLID)
    | (_with(_CYLINDER, *_SOLID) - _with(_CYLINDER, _SPHERE))
)
"""Pairs of types that C collides by a search for the deepest point, which `nativeccd` chooses."""
MANY_POINTS = frozenset(
    _with(_MESH, _CAPSULE, _CYLINDER, _BOX, _MESH) | _with(_CYLINDER, _CAPSULE, _CYLINDER, _BOX)
)
"""Those of them for which `multiccd` adds points beside the deepest."""


def colliding(model: mujoco.MjModel) -> np.ndarray:
    """`[P, 2]` the pairs of geoms that C's filters let collide; explicit pairs last.

    Geoms collide unless `contype` and `conaffinity`, a common body, the filter of parents or an `exclude`
    keep them apart. Bodies without a joint between them count as one.
    """
    candidates = np.flatnonzero(model.geom_contype | model.geom_conaffinity)
    first, second = (candidates[side] for side in np.triu_indices(len(candidates), 1))
    bodies = model.geom_bodyid
    weld, parent = model.body_weldid, model.body_weldid[model.body_parentid[model.body_weldid]]
    a, b = weld[bodies[first]], weld[bodies[second]]
    affine = (model.geom_contype[first] & model.geom_conaffinity[second]) | (
        model.geom_contype[second] & model.geom_conaffinity[first]
    )
    meets = (affine != 0) & (a != b)
    if not model.opt.disableflags & int(mujoco.mjtDisableBit.mjDSBL_FILTERPARENT):
        meets &= ~((a != 0) & (b != 0) & ((a == parent[b]) | (b == parent[a])))
    signature = (np.minimum(bodies[first], bodies[second]).astype(np.int64) << 16) + np.maximum(
        bodies[first], bodies[second]
    )
    meets &= ~np.isin(signature, model.exclude_signature)
    pairs = np.stack((first[meets], second[meets]), 1)
    return np.concatenate((pairs, np.stack((model.pair_geom1, model.pair_geom2), 1)))


def colliding_types(model: mujoco.MjModel) -> set[frozenset[int]]:
    """The pairs of types of geoms that can collide."""
    types = np.unique(np.sort(model.geom_type[colliding(model)], axis=1), axis=0)
    return {frozenset(pair) for pair in types.tolist()}
