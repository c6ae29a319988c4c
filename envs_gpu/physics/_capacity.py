"""How many contacts and constraints a world can have: MuJoCo Warp allocates before it knows."""

from __future__ import annotations

import enum
from typing import NamedTuple

import mujoco
import numpy as np
import torch
from torch import Tensor

from envs_gpu.physics.base import PhysicsOptions

_GEOM = mujoco.mjtGeom
_PAIRWISE_LIMIT = 128
"""Up to so many contacts a world, every pair of geoms gets room to touch at all its points at once."""
_CONTACTS_PER_GEOM = 4
"""Beyond it, so many contacts a geom: more than bodies in a heap have, fewer than all pairs at once."""

_CONTACTS_ON_HFIELD = 4
"""Every cell that a geom touches makes a contact, and MuJoCo Warp and MJX keep so many of them."""

_CONTACTS = (1 << 2) | (1 << 3) | (1 << 4)
"""BROADPHASE, NARROWPHASE and CCD of `mujoco_warp.OverflowType`: as many as there is room for contacts."""
_CONSTRAINTS = (1 << 0) | (1 << 1)
"""NEFC and NJMAX_NNZ: rows of the constraint Jacobian."""
_FIXED = (1 << 5) | (1 << 6) | (1 << 7) | (1 << 8) | (1 << 11)
"""HFIELD, CONTACT_MATCH, NVMAX, EPA_HORIZON and TACTILE: nobody here sets their sizes. ITERATIONS and
LS_ITERATIONS are left out: the solver stopped, no buffer was too small."""


class Overflow(enum.IntFlag):
    """What found no room in a world."""

    CONTACTS = 1
    CONSTRAINTS = 2
    FIXED = 4


class Capacity(NamedTuple):
    """Sizes of one world's buffers."""

    contacts: int
    """Contacts, and broad-phase candidates (`nconmax`)."""
    constraints: int
    """Rows of the constraint Jacobian (`njmax`)."""


def capacity(
    model: mujoco.MjModel,
    geom_pairs: np.ndarray,
    options: PhysicsOptions = PhysicsOptions(),  # noqa: B008 - frozen
) -> Capacity:
    """Room for everything that `model` can meet at once, or for a heap of its geoms if that is too much.

    Args:
        model: the compiled scene.
        geom_pairs: `[P, 2]` the pairs of geoms that collision detection considers.
        options: `max_contacts` and `max_constraints` come first.
    """
    contacts = sum(_pair_points(*model.geom_type[pair].tolist()) for pair in geom_pairs)
    if contacts > _PAIRWISE_LIMIT:
        contacts = max(_PAIRWISE_LIMIT, _CONTACTS_PER_GEOM * len(np.unique(geom_pairs)))
    contacts += int(model.nflexvert)
    contacts = options.max_contacts or max(contacts, 1)
    limits = int(model.jnt_limited.sum() + model.tendon_limited.sum())
    friction = int((model.dof_frictionloss > 0).sum() + (model.tendon_frictionloss > 0).sum())
    rows = contacts * _rows_per_contact(model) + limits + friction + _equality_rows(model)
    return Capacity(contacts, options.max_constraints or max(rows, 1))


def _equality_rows(model: mujoco.MjModel) -> int:
    """Rows of all equality constraints; those of a flex have one for each of its edges."""
    data = mujoco.MjData(model)
    data.eq_active[:] = 1
    mujoco.mj_fwdPosition(model, data)
    return max(6 * model.neq, data.ne)


def overflow_of(bits: Tensor) -> Tensor:
    """`[N]` int32 bits of `Overflow` from the `[N]` overflow bits of MuJoCo Warp's data."""
    kinds = ((Overflow.CONTACTS, _CONTACTS), (Overflow.CONSTRAINTS, _CONSTRAINTS), (Overflow.FIXED, _FIXED))
    found = torch.zeros_like(bits, dtype=torch.int32)
    for kind, theirs in kinds:
        found |= ((bits & theirs) != 0).int() * int(kind)
    return found


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
