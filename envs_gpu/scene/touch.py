"""What can touch what, by MuJoCo's rules: bits of `contype` and `conaffinity`, `<pair>` and `<exclude>`."""

from __future__ import annotations

import mujoco
import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
WORLD = 0


def contacts_are_off(model: mujoco.MjModel) -> bool:
    """Whether flags of the model switch all contacts off, or their forces."""
    flags = mujoco.mjtDisableBit
    return bool(model.opt.disableflags & (flags.mjDSBL_CONTACT | flags.mjDSBL_CONSTRAINT))


def colliding(model: mujoco.MjModel) -> list[int]:
    """The geoms that can touch anything."""
    if contacts_are_off(model):
        return []
    touches = (model.geom_contype | model.geom_conaffinity) != 0
    touches[model.pair_geom1] = touches[model.pair_geom2] = True
    return np.flatnonzero(touches).tolist()


def geoms_of(model: mujoco.MjModel, root: int) -> list[int]:
    """The geoms of the body `root` and all that it carries which can touch anything."""
    return [geom for geom in colliding(model) if model.body_rootid[model.geom_bodyid[geom]] == root]


def flexes_of(model: mujoco.MjModel, root: int) -> list[int]:
    """The flexes with a vertex or node on the body `root` or on what it carries."""
    found = []
    for flex in range(model.nflex):
        first, node = model.flex_vertadr[flex], model.flex_nodeadr[flex]
        vertices = model.flex_vertbodyid[first : first + model.flex_vertnum[flex]]
        nodes = model.flex_nodebodyid[node : node + model.flex_nodenum[flex]]
        bodies = np.concatenate((vertices, nodes))
        if (model.body_rootid[bodies[bodies > WORLD]] == root).any():
            found.append(flex)
    return found


def touches_root(model: mujoco.MjModel, root: int) -> Bools:
    """`[ngeom]` the geoms that can touch a geom or flex of the body `root` or of what it carries."""
    touches = np.zeros(model.ngeom, bool)
    if contacts_are_off(model):
        return touches
    own, flexes = np.asarray(geoms_of(model, root), int), flexes_of(model, root)
    bits = _bits_match(
        model.geom_contype, model.geom_conaffinity, model.geom_contype[own], model.geom_conaffinity[own]
    )
    bits &= ~_excluded(model, model.geom_bodyid, model.geom_bodyid[own])
    touches |= bits.any(1)
    soft = _bits_match(
        model.geom_contype, model.geom_conaffinity, model.flex_contype[flexes], model.flex_conaffinity[flexes]
    )
    touches |= soft.any(1)
    touches[model.pair_geom1[np.isin(model.pair_geom2, own)]] = True
    touches[model.pair_geom2[np.isin(model.pair_geom1, own)]] = True
    return touches


def touches_floor(model: mujoco.MjModel) -> tuple[Bools, Bools]:
    """The geoms `[ngeom]` and flexes `[nflex]` that a geom can touch which is added to the world."""
    if contacts_are_off(model):
        return np.zeros(model.ngeom, bool), np.zeros(model.nflex, bool)
    geoms = (model.geom_contype | model.geom_conaffinity) != 0
    geoms &= ~_excluded(model, model.geom_bodyid, np.array([WORLD]))[:, 0]
    return geoms, (model.flex_contype | model.flex_conaffinity) != 0


def _bits_match(type_a: Bools, affinity_a: Bools, type_b: Bools, affinity_b: Bools) -> Bools:
    """`[A, B]`."""
    either = (type_a[:, None] & affinity_b) | (affinity_a[:, None] & type_b)
    return np.asarray(either != 0)


def _excluded(model: mujoco.MjModel, bodies_a: NDArray[np.int32], bodies_b: NDArray[np.int32]) -> Bools:
    """`[A, B]` whether `<exclude>` names the pair of bodies."""
    one, other = bodies_a[:, None], bodies_b
    signature = (np.minimum(one, other) << 16) + np.maximum(one, other)
    return np.isin(signature, model.exclude_signature)
