"""Noise on a start pose that keeps closed loops closed and stays within joint limits.

Degrees of freedom in no equality constraint get independent noise. For the others, `pool` holds displacements
that were found beforehand in C MuJoCo. A displacement of size `s` is `s * tangent + s**2 * bend`: `tangent`
lies in the plane that the constraints leave free at the pose, and `bend` brings the end of it back onto the
constraints. They hold exactly at 0 and 1, and in between up to the third power of the noise.

Letters: K displacements in the pool, nv velocities, C coupled degrees of freedom, E constraint rows.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import mujoco
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_HINGE, _SLIDE = int(mujoco.mjtJoint.mjJNT_HINGE), int(mujoco.mjtJoint.mjJNT_SLIDE)
NOISE = 0.1
"""Half the width of the uniform noise on the start: rad, m, rad/s and m/s."""
LIFT_M = 0.02
"""A floating or sliding base starts up to this much higher, never lower: its feet would be in the ground."""
POOL = 128
"""K."""
_CLOSED = 1e-9
"""Violation, m or rad, below which a constraint counts as closed."""
_NEWTON_STEPS = 30
_HALVINGS = 5
_NOTHING = 1e-9
"""Elements of a Jacobian below it are rounding."""


class StartNoise(NamedTuple):
    """How starts differ from the pose; float64."""

    low: Array
    high: Array
    """`[nv]` bounds of the displacement; zero where a degree of freedom is coupled or not the robot's."""
    speed: Array
    """`[nv]` half the width of the velocity, in the same way."""
    coupled: NDArray[np.bool_]
    """`[nv]` an equality constraint ties it to others."""
    tangent: Array
    bend: Array
    velocity: Array
    """`[K, nv]` displacements and velocities of the coupled ones; K is 0 where there are none."""


def start_noise(
    model: mujoco.MjModel,
    data: mujoco.MjData,
    base: int | None,
    up: Array,
    falling_slides: Sequence[int] = (),
) -> StartNoise:
    """The noise for a robot, at its start pose.

    Args:
        model: compiled.
        data: at the start pose; see `close_loops`.
        base: position address of the robot's free joint; other free bodies and flex vertices get no noise.
        up: `[3]` the direction in which a base is lifted.
        falling_slides: joints along which a base falls; they are lifted, as a free joint is.
    """
    low, high = _bounds(model, base, up)
    for joint in falling_slides:
        dof, upward = model.jnt_dofadr[joint], np.sign(data.xaxis[joint] @ up)
        low[dof], high[dof] = sorted((0.0, LIFT_M * upward))
    loops = _Loops(model, data)
    coupled = loops.coupled & (high > low)
    nothing = np.zeros((0, model.nv))
    pool = loops.pool(low, high, coupled) if coupled.any() else (nothing, nothing, nothing)
    alone = ~loops.coupled
    speed = np.where(high > low, NOISE, 0.0)
    return StartNoise(low * alone, high * alone, speed * alone, loops.coupled, *pool)


def close_loops(model: mujoco.MjModel, data: mujoco.MjData) -> None:
    """Move `data.qpos` to the nearest positions at which the equality constraints hold, where some are found.

    Flex vertices stay where they are.
    """
    loops = _Loops(model, data)
    if loops.coupled.any() and (closed := loops.project(data.qpos, loops.coupled)) is not None:
        data.qpos[:] = closed
        mujoco.mj_fwdPosition(model, data)


def flex_dofs(model: mujoco.MjModel) -> NDArray[np.bool_]:
    """`[nv]` the degrees of freedom of flex vertices and nodes."""
    bodies = {*model.flex_vertbodyid.tolist(), *model.flex_nodebodyid.tolist()} - {-1, 0}
    own = {body for body in bodies if model.body_dofnum[body] and not model.body_geomnum[body]}
    return np.isin(model.dof_bodyid, sorted(own))


def _bounds(model: mujoco.MjModel, base: int | None, up: Array) -> tuple[Array, Array]:
    """Bounds of the displacement `[nv]` each, as if nothing were coupled."""
    low, high = np.full(model.nv, -NOISE), np.full(model.nv, NOISE)
    for joint in np.flatnonzero(model.jnt_type == mujoco.mjtJoint.mjJNT_FREE):
        first = model.jnt_dofadr[joint]
        if model.jnt_qposadr[joint] == base:
            lifted = int(np.abs(up).argmax())
            low[first + lifted], high[first + lifted] = sorted((0.0, LIFT_M * np.sign(up[lifted])))
        else:
            low[first : first + 6] = high[first : first + 6] = 0.0
    flexible = flex_dofs(model)
    low[flexible] = high[flexible] = 0.0
    return low, high


class _Loops:
    """The equality constraints of a model around one pose."""

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        self._model = copy.copy(model)
        self._model.opt.jacobian = mujoco.mjtJacobian.mjJAC_DENSE
        flags = mujoco.mjtDisableBit
        self._model.opt.disableflags |= flags.mjDSBL_CONTACT | flags.mjDSBL_LIMIT | flags.mjDSBL_FRICTIONLOSS
        self._data = mujoco.MjData(self._model)
        self._data.mocap_pos[:], self._data.mocap_quat[:] = data.mocap_pos, data.mocap_quat
        self._data.eq_active[:] = data.eq_active
        self._start = data.qpos.copy()
        self._free = ~flex_dofs(model)
        self.coupled = self._find_coupled()
        """`[nv]`."""
        self._low, self._high = _joint_limits(model, self._start)
        number = (model.jnt_type == _HINGE) | (model.jnt_type == _SLIDE)
        self._dof_qpos = np.where(number, model.jnt_qposadr, -1)[model.dof_jntid]
        """`[nv]` position address of a hinge or slide; -1 for other degrees of freedom."""
        self._dof_low = np.where(self._dof_qpos < 0, -np.inf, self._low[self._dof_qpos])
        self._dof_high = np.where(self._dof_qpos < 0, np.inf, self._high[self._dof_qpos])

    def _find_coupled(self) -> NDArray[np.bool_]:
        """Degrees of freedom on which a constraint depends at the pose or near it; all of a ball joint's."""
        model, rng = self._model, np.random.default_rng(0)
        found = np.zeros(model.nv, bool)
        for size in (0.0, NOISE, NOISE):
            near = self._start.copy()
            mujoco.mj_integratePos(model, near, size * rng.uniform(-1, 1, model.nv), 1.0)
            found |= (np.abs(self._constraints(near)[1]) > _NOTHING).any(0)
        ball = model.jnt_type[model.dof_jntid] == mujoco.mjtJoint.mjJNT_BALL
        joints = model.dof_jntid[found]
        return (found | (ball & np.isin(model.dof_jntid, joints))) & self._free

    def pool(self, low: Array, high: Array, coupled: NDArray[np.bool_]) -> tuple[Array, Array, Array]:
        """Tangents, bends and velocities `[K, nv]`, the same for every run."""
        rng = np.random.default_rng(0)
        rows = [self._draw(rng, low, high, coupled) for _ in range(POOL)]
        tangent, bend, velocity = (np.array(column) for column in zip(*rows, strict=True))
        return tangent, bend, velocity

    def project(self, qpos: Array, moves: NDArray[np.bool_]) -> Array | None:
        """Positions `[nq]` on the constraints, reached from `qpos` by Newton steps; None if none are found.

        Only the degrees of freedom of `moves` `[nv]` change.
        """
        qpos = qpos.copy()
        for _ in range(_NEWTON_STEPS):
            violation, jacobian = self._constraints(qpos)
            if np.abs(violation).max(initial=0.0) < _CLOSED:
                return qpos
            step = self._newton_step(qpos, violation, jacobian, moves)
            if not np.isfinite(step).all() or np.abs(step).max(initial=0.0) > 1.0:
                return None
            mujoco.mj_integratePos(self._model, qpos, step, 1.0)
            np.clip(qpos, self._low, self._high, out=qpos)
        return None

    def _newton_step(self, qpos: Array, violation: Array, jacobian: Array, moves: NDArray[np.bool_]) -> Array:
        """The smallest change `[nv]` that undoes `violation`; it pushes no joint into its stop."""
        joint_pos = np.where(self._dof_qpos < 0, 0.0, qpos[self._dof_qpos])
        while True:
            step = np.zeros(self._model.nv)
            step[moves] = -np.linalg.lstsq(jacobian[:, moves], violation, rcond=1e-8)[0]
            stopped = (joint_pos <= self._dof_low) & (step < 0) | (joint_pos >= self._dof_high) & (step > 0)
            if not (stopped & moves).any():
                return step
            moves = moves & ~stopped

    def _draw(
        self, rng: np.random.Generator, low: Array, high: Array, coupled: NDArray[np.bool_]
    ) -> tuple[Array, Array, Array]:
        """One tangent, bend and velocity `[nv]`; zeros where nothing was found near the pose."""
        model, nothing = self._model, np.zeros(self._model.nv)
        drawn = np.where(coupled, rng.uniform(low, high), 0.0)
        speed = np.where(coupled, rng.uniform(-NOISE, NOISE, model.nv), 0.0)
        tangent = self._allowed(self._start, drawn, coupled)
        for _ in range(_HALVINGS):
            end = self._start.copy()
            mujoco.mj_integratePos(model, end, tangent, 1.0)
            np.clip(end, self._low, self._high, out=end)
            if (end := self.project(end, coupled)) is not None:
                total = np.zeros(model.nv)
                mujoco.mj_differentiatePos(model, total, 1.0, self._start, end)
                return tangent, total - tangent, self._allowed(end, speed, coupled)
            tangent = 0.5 * tangent
        return nothing, nothing, self._allowed(self._start, speed, coupled)

    def _allowed(self, qpos: Array, velocity: Array, coupled: NDArray[np.bool_]) -> Array:
        """The part of `velocity` `[nv]` that the constraints at `qpos` leave free."""
        _, jacobian = self._constraints(qpos)
        own = jacobian[:, coupled]
        allowed = np.zeros_like(velocity)
        blocked = np.linalg.lstsq(own, own @ velocity[coupled], rcond=1e-8)[0]
        allowed[coupled] = velocity[coupled] - blocked
        return allowed

    def _constraints(self, qpos: Array) -> tuple[Array, Array]:
        """Violations `[E]`, m or rad, and their Jacobian `[E, nv]`, of constraints that joints can change."""
        data = self._data
        data.qpos[:] = qpos
        mujoco.mj_fwdPosition(self._model, data)
        rows, nv = data.ne, self._model.nv
        jacobian = np.array(data.efc_J)[: rows * nv].reshape(rows, nv)
        violation = np.array(data.efc_pos[:rows])
        own = (np.abs(jacobian[:, self._free]) > _NOTHING).any(1)
        return violation[own], jacobian[own]


def _joint_limits(model: mujoco.MjModel, pose: Array) -> tuple[Array, Array]:
    """Lowest and highest positions `[nq]`, widened to the pose where that is beyond them."""
    low, high = position_limits(model)
    return np.minimum(low, pose), np.maximum(high, pose)


def position_limits(model: mujoco.MjModel) -> Array:
    """Lowest and highest of every position `[2, nq]`: the ranges of limited hinges and slides."""
    limits = np.tile([[-np.inf], [np.inf]], (1, model.nq))
    number = (model.jnt_type == _HINGE) | (model.jnt_type == _SLIDE)
    limited = number & (model.jnt_limited == 1)
    limits[:, model.jnt_qposadr[limited]] = model.jnt_range[limited].T
    return limits
