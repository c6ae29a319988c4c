"""The acceleration that closes a loop, for MJX in JAX, which leaves it out; see `_equality_velocity`."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from mujoco.mjx._src.math import quat_inv, quat_mul

_corrected: set[str] = set()


def correct_mjx(constraint: Any, smooth: Any, support: Any) -> None:
    """Give MJX's `constraint` this acceleration, which its JAX implementation leaves out.

    Args:
        constraint: the module that makes constraints; before the first function is traced.
        smooth: the module of the same package that works out velocities.
        support: the one that has Jacobians.
    """
    if constraint.__name__ in _corrected:
        return
    _corrected.add(constraint.__name__)
    original = constraint.make_constraint

    @functools.wraps(original)
    def make_constraint(model: Any, data: Any) -> Any:
        off = model.opt.disableflags & (constraint.DisableBit.CONSTRAINT | constraint.DisableBit.EQUALITY)
        connects, welds = (
            np.flatnonzero(model.eq_type == kind)
            for kind in (constraint.EqType.CONNECT, constraint.EqType.WELD)
        )
        if off or not len(connects) + len(welds):
            return original(model, data)
        data = smooth.com_vel(model, data)
        made = original(model, data)
        shifts = [_shift(support, model, data, int(eq), welded=False) for eq in connects]
        shifts += [_shift(support, model, data, int(eq), welded=True) for eq in welds]
        shift = jnp.concatenate(shifts)  # connections come first among the rows, then welds
        aref = made._impl.efc_aref
        return made.tree_replace({"_impl.efc_aref": aref.at[: len(shift)].add(-shift)})

    constraint.make_constraint = make_constraint


def _shift(support: Any, model: Any, data: Any, eq: int, welded: bool) -> jax.Array:
    """Change of the constraint's Jacobian in a second, times the velocities: `[3]`, of a weld `[6]`."""
    on_sites = model.eq_objtype[eq] == mujoco.mjtObj.mjOBJ_SITE
    objects = (model.eq_obj1id[eq], model.eq_obj2id[eq])
    bodies = [model.site_bodyid[index] for index in objects] if on_sites else objects
    anchors = (model.eq_data[eq, 3:6], model.eq_data[eq, 0:3])
    linear, turning, spin = [], [], []
    for body, index, anchor in zip(bodies, objects, anchors if welded else anchors[::-1], strict=True):
        point = data.site_xpos[index] if on_sites else data.xmat[body] @ anchor + data.xpos[body]
        linear_dot, turning_dot = support.jac_dot(model, data, point, body)  # [nv, 3] each
        linear.append(linear_dot.T @ data.qvel)
        turning.append(turning_dot.T @ data.qvel)
        spin.append(data.cvel[body, :3])
    shift = linear[0] - linear[1]
    if welded:
        frames = [data.xquat[body] for body in bodies]
        if on_sites:
            frames = [quat_mul(q, model.site_quat[i]) for q, i in zip(frames, objects, strict=True)]
        else:
            frames[0] = quat_mul(frames[0], model.eq_data[eq, 6:10])
        turn = _turning_shift(frames, spin, turning[0] - turning[1]) * model.eq_data[eq, 10]
        shift = jnp.concatenate((shift, turn))
    return shift * data.eq_active[eq]


def _turning_shift(frames: list[jax.Array], spin: list[jax.Array], turning: jax.Array) -> jax.Array:
    """`[3]` d/dt of the axis of half of q2^-1 (w1 - w2) q1, which is d/dt of the axis of q2^-1 q1."""
    first, inverse = frames[0], quat_inv(frames[1])
    first_dot = 0.5 * quat_mul(_pure(spin[0]), first)
    inverse_dot = -0.5 * quat_mul(inverse, _pure(spin[1]))
    between = _pure(spin[0] - spin[1])
    terms = ((inverse_dot, between, first), (inverse, _pure(turning), first), (inverse, between, first_dot))
    return 0.5 * sum(quat_mul(quat_mul(a, b), c)[1:] for a, b, c in terms)


def _pure(axis: jax.Array) -> jax.Array:
    return jnp.concatenate((jnp.zeros(1, axis.dtype), axis))
