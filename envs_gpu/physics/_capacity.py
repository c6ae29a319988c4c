"""How many contacts and constraints a world can have: MuJoCo Warp allocates before it knows."""

from __future__ import annotations

from typing import NamedTuple

import mujoco
import numpy as np
from torch import Tensor

_GEOM = mujoco.mjtGeom
_PAIRWISE_LIMIT = 128
"""Up to so many contacts a world, every pair of geoms gets room to touch at all its points at once."""
_CONTACTS_PER_GEOM = 4
"""Beyond it, so many contacts a geom: more than bodies in a heap have, fewer than all pairs at once."""

_CONTACTS_ON_HFIELD = 4
"""Every cell that a geom touches makes a contact, and MuJoCo Warp and MJX keep so many of them."""

_SOLVER_LIMITS = (1 << 9) | (1 << 10)
"""ITERATIONS and LS_ITERATIONS of `mujoco_warp.OverflowType`: the solver stopped, no buffer was too small."""


class Capacity(NamedTuple):
    """Sizes of one world's buffers."""

    contacts: int
    """Contacts, and broad-phase candidates (`nconmax`)."""
    constraints: int
    """Rows of the constraint Jacobian (`njmax`)."""


def capacity(model: mujoco.MjModel, geom_pairs: np.ndarray) -> Capacity:
    """Room for everything that `model` can meet at once, or for a heap of its geoms if that is too much.

    Args:
        model: the compiled scene.
        geom_pairs: `[P, 2]` the pairs of geoms that collision detection considers.
    """
    contacts = sum(_pair_points(*model.geom_type[pair]) for pair in geom_pairs)
    if contacts > _PAIRWISE_LIMIT:
        contacts = max(_PAIRWISE_LIMIT, _CONTACTS_PER_GEOM * len(np.unique(geom_pairs)))
    limits = int(model.jnt_limited.sum() + model.tendon_limited.sum())
    friction = int((model.dof_frictionloss > 0).sum() + (model.tendon_frictionloss > 0).sum())
    rows = contacts * _rows_per_contact(model) + limits + friction + 6 * model.neq
    return Capacity(max(contacts, 1), max(rows, 1))


def overflowed(bits: Tensor) -> Tensor:
    """`[N]` bool from the `[N]` overflow bits of MuJoCo Warp's data: something found no room."""
    return (bits & ~_SOLVER_LIMITS) != 0


def _pair_points(*geom_types: int) -> int:
    """Most points at which two geoms of these types touch."""
    if _GEOM.mjGEOM_HFIELD in geom_types:
        return _CONTACTS_ON_HFIELD
    return min(map(_contact_points, geom_types))


def _contact_points(geom_type: int) -> int:
    """Most points at which a geom of this type touches another one."""
    if geom_type in (_GEOM.mjGEOM_SPHERE, _GEOM.mjGEOM_ELLIPSOID):
        return 1
    if geom_type == _GEOM.mjGEOM_CAPSULE:
        return 2
    if geom_type == _GEOM.mjGEOM_PLANE:
        return int(mujoco.mjMAXCONPAIR)
    return 8


def _rows_per_contact(model: mujoco.MjModel) -> int:
    condim = int(max((*model.geom_condim, *model.pair_dim), default=1))
    if condim > 1 and model.opt.cone == mujoco.mjtCone.mjCONE_PYRAMIDAL:
        return 2 * (condim - 1)
    return condim
