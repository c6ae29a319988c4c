"""What a robot can reach: joint speeds and positions beyond these limits mean that its simulation blew up.

A speed limit follows from energy. The actuators of a model can put a certain energy E into it in one stroke:
each pushes with its largest force over the range of its joints. All of it, as kinetic energy of one joint
alone, is a speed of `sqrt(2 E / m)`, where `1 / m` is the joint's diagonal element of the inverse mass matrix
(MuJoCo's `dof_invweight0`). Robots gather the work of several strokes when they run, so a limit allows a
multiple of that energy.

Letters: nq positions, nv velocities (degrees of freedom), nu actuators.
"""

from __future__ import annotations

from typing import NamedTuple

import mujoco
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs_gpu.actuators import actuator_of_output

_HINGE, _SLIDE = int(mujoco.mjtJoint.mjJNT_HINGE), int(mujoco.mjtJoint.mjJNT_SLIDE)
_NUM_DOFS = {
    _HINGE: 1,
    _SLIDE: 1,
    int(mujoco.mjtJoint.mjJNT_BALL): 3,
    int(mujoco.mjtJoint.mjJNT_FREE): 6,
}
_LIMIT = float(mujoco.mjMAXVAL)
"""Beyond it C MuJoCo calls a state bad, whatever the robot is."""
_FALL_M = 2.0
"""The least height that something may have fallen from."""

Array = NDArray[np.float64]


class Limits(NamedTuple):
    """The states of one model that count as possible; float64 tensors on the CPU."""

    qpos_low: Tensor
    """`[nq]`."""
    qpos_high: Tensor
    """`[nq]`."""
    speed: Tensor
    """`[nv]` the largest size of each velocity."""

    def to(self, device: torch.device, dtype: torch.dtype) -> Limits:
        """The same limits on another device."""
        return Limits(*(limit.to(device, dtype) for limit in self))


def reachable(model: mujoco.MjModel, energy_margin: float | None, duration_s: float) -> Limits:
    """The states that a robot can reach.

    Args:
        model: compiled; its reference configuration (`qpos0`) gives masses and lever arms.
        energy_margin: how many times the energy of one stroke counts as possible; None sets no limits but
            those of C MuJoCo.
        duration_s: how long an episode lasts: for this long a motor without a joint limit may accelerate.
    """
    low, high = np.full(model.nq, -_LIMIT), np.full(model.nq, _LIMIT)
    speed = np.full(model.nv, _LIMIT)
    if energy_margin is not None and model.nv:
        _limit_positions(model, low, high)
        energy_j = energy_margin * _stroke_energy(model, duration_s)
        # A massless degree of freedom has an invweight of zero: nothing is known about it.
        inverse_mass = np.where(model.dof_invweight0 > 0, model.dof_invweight0, np.inf)
        speed = np.minimum(np.sqrt(2.0 * energy_j * inverse_mass), _LIMIT)
    return Limits(*(torch.from_numpy(limit) for limit in (low, high, speed)))


def _limit_positions(model: mujoco.MjModel, low: Array, high: Array) -> None:
    """Limit joints that have a range: they give way at their stops, but not by more than the range itself."""
    for joint in _joints_with_range(model):
        first, last = model.jnt_range[joint]
        more = (last - first) + (np.pi if model.jnt_type[joint] == _HINGE else model.stat.extent)
        address = model.jnt_qposadr[joint]
        low[address], high[address] = first - more, last + more


def _stroke_energy(model: mujoco.MjModel, duration_s: float) -> float:
    """The energy, J, of one stroke of all actuators, of the springs, and of a fall."""
    force, width = _joint_forces(model), _joint_widths(model)  # [nv]; the width is inf without a range
    bounded = np.isfinite(width)
    width = np.where(bounded, width, 0.0)
    with np.errstate(invalid="ignore"):
        strokes = np.where(bounded, force * width, 0.0)
    free = _unbounded_work(model, np.where(bounded, 0.0, force), duration_s)
    springs = 0.5 * np.repeat(model.jnt_stiffness, _dofs_of_joints(model)) * width**2
    fall = model.body_mass.sum() * np.linalg.norm(model.opt.gravity) * max(model.stat.extent, _FALL_M)
    return float((strokes + free + springs).sum() + fall)


def _unbounded_work(model: mujoco.MjModel, force: Array, duration_s: float) -> Array:
    """Kinetic energy `[nv]`, J, where no range ends the stroke: time or damping ends it."""
    inverse_mass = model.dof_invweight0
    with np.errstate(divide="ignore", invalid="ignore"):
        terminal = np.where(model.dof_damping > 0, force / model.dof_damping, np.inf)
        speed = np.minimum(force * inverse_mass * duration_s, terminal)
        energy = np.where(force > 0, 0.5 * speed**2 / inverse_mass, 0.0)
    return np.nan_to_num(energy, nan=0.0, posinf=np.inf)


def _joint_forces(model: mujoco.MjModel) -> Array:
    """`[nv]` the largest generalized force of the actuators on each degree of freedom; inf where unknown."""
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    owner = actuator_of_output(model)
    moment = np.zeros((len(owner), model.nv))
    if len(owner):
        mujoco.mju_sparse2dense(
            moment, data.actuator_moment, data.moment_rownnz, data.moment_rowadr, data.moment_colind
        )
    largest = np.array([_largest_force(model, index) for index in range(model.nactuator)])[owner]
    with np.errstate(invalid="ignore"):
        force = np.nan_to_num(np.abs(moment) * largest[:, None], nan=0.0, posinf=np.inf).sum(0)
    limited = np.repeat(model.jnt_actfrclimited, _dofs_of_joints(model)).astype(bool)
    largest_of_joint = np.repeat(np.abs(model.jnt_actfrcrange).max(1), _dofs_of_joints(model))
    return np.where(limited, np.minimum(force, largest_of_joint), force)


def _largest_force(model: mujoco.MjModel, index: int) -> float:
    """The largest force of an actuator; inf where it cannot be told from the model."""
    if model.actuator_forcelimited[index]:
        return float(np.abs(model.actuator_forcerange[index]).max())
    first = model.actuator_ctrladr[index]
    own = slice(first, first + model.actuator_ctrlnum[index])
    if not model.actuator_ctrllimited[own].all():
        return np.inf
    control = np.abs(model.actuator_ctrlrange[own]).max(initial=0.0)
    gain_kind, bias_kind = model.actuator_gaintype[index], model.actuator_biastype[index]
    if gain_kind != mujoco.mjtGain.mjGAIN_FIXED:
        return np.inf
    force = abs(model.actuator_gainprm[index, 0]) * control
    if bias_kind == mujoco.mjtBias.mjBIAS_NONE:
        return float(force)
    if bias_kind == mujoco.mjtBias.mjBIAS_AFFINE:
        # A servo's spring pulls at most from one end of its range to the other.
        low, high = model.actuator_lengthrange[model.actuator_outadr[index]]
        reach = max(high - low, 2 * control)
        return float(
            force + abs(model.actuator_biasprm[index, 0]) + abs(model.actuator_biasprm[index, 1]) * reach
        )
    return np.inf


def _joint_widths(model: mujoco.MjModel) -> Array:
    """`[nv]` how far each degree of freedom can move, rad or m; inf without a range."""
    width = np.full(model.nv, np.inf)
    for joint in _joints_with_range(model):
        width[model.jnt_dofadr[joint]] = np.ptp(model.jnt_range[joint])
    return width


def _joints_with_range(model: mujoco.MjModel) -> NDArray[np.int64]:
    """The numbers of the hinges and slides that have a range."""
    return np.flatnonzero(model.jnt_limited.astype(bool) & np.isin(model.jnt_type, (_HINGE, _SLIDE)))


def _dofs_of_joints(model: mujoco.MjModel) -> NDArray[np.int64]:
    """`[njnt]` how many degrees of freedom each joint has."""
    return np.array([_NUM_DOFS[int(kind)] for kind in model.jnt_type], dtype=np.int64)
