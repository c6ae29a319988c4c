"""Generalized positions of any model: hinges and slides are numbers, ball and free joints quaternions.

Letters: N worlds, nq positions, nv velocities.
"""

from __future__ import annotations

from collections.abc import Sequence

import mujoco
import torch
from torch import Tensor

_BALL, _FREE = mujoco.mjtJoint.mjJNT_BALL, mujoco.mjtJoint.mjJNT_FREE


class Pose:
    """How the positions of `model` are laid out, on `device`."""

    def __init__(self, model: mujoco.MjModel, device: torch.device) -> None:
        numbers: list[tuple[int, int]] = []  # (position, velocity) addresses
        quaternions: list[tuple[int, int]] = []
        for kind, qpos, dof in zip(model.jnt_type, model.jnt_qposadr, model.jnt_dofadr, strict=True):
            if kind == _FREE:
                numbers += [(qpos + i, dof + i) for i in range(3)]
                quaternions.append((qpos + 3, dof + 3))
            elif kind == _BALL:
                quaternions.append((qpos, dof))
            else:
                numbers.append((qpos, dof))
        self.num_velocities = model.nv
        self._number = torch.tensor(numbers, device=device, dtype=torch.int64).reshape(-1, 2).T  # [2, S]
        self._quaternion = torch.tensor(quaternions, device=device, dtype=torch.int64).reshape(-1, 2).T

    def difference(self, to: Tensor, origin: Tensor) -> Tensor:
        """The velocity `[N, nv]` that leads from `origin` to `to` `[N, nq]` within one second.

        As `mj_differentiatePos`: m and rad; of a quaternion, the rotation vector in the frame at `origin`.
        """
        change = torch.zeros(len(to), self.num_velocities, dtype=to.dtype, device=to.device)
        qpos, dof = self._number
        change = change.index_copy(1, dof, to[:, qpos] - origin[:, qpos])
        if not self._quaternion.numel():
            return change
        where = self._quaternions()  # [R, 4]
        turn = quaternion_product(_conjugate(origin[:, where]), to[:, where])  # [N, R, 4]
        return change.index_copy(1, self._rotations().flatten(), rotation_vector(turn).flatten(1))

    def displace(self, origin: Tensor, change: Tensor) -> Tensor:
        """Positions `[N, nq]` after one second at the velocity `change` `[N, nv]`; as `mj_integratePos`."""
        qpos, dof = self._number
        moved = origin.index_copy(1, qpos, origin[:, qpos] + change[:, dof])
        if not self._quaternion.numel():
            return moved
        where = self._quaternions()
        turned = quaternion_product(origin[:, where], quaternion(change[:, self._rotations()]))
        return moved.index_copy(1, where.flatten(), torch.nn.functional.normalize(turned, dim=-1).flatten(1))

    def _quaternions(self) -> Tensor:
        """Addresses of every quaternion's elements `[R, 4]`."""
        return self._quaternion[0].unsqueeze(-1) + torch.arange(4, device=self._quaternion.device)

    def _rotations(self) -> Tensor:
        """Addresses of every angular velocity's elements `[R, 3]`."""
        return self._quaternion[1].unsqueeze(-1) + torch.arange(3, device=self._quaternion.device)


def quaternion(rotation: Tensor) -> Tensor:
    """Unit quaternions `[..., 4]` of rotation vectors `[..., 3]`, rad."""
    angle = rotation.norm(dim=-1, keepdim=True)
    half_sinc = 0.5 * torch.sinc(angle / (2 * torch.pi))  # sin(angle / 2) / angle, and 1/2 at zero
    return torch.cat(((0.5 * angle).cos(), half_sinc * rotation), -1)


def rotation_vector(turn: Tensor) -> Tensor:
    """The shortest rotation vectors `[..., 3]`, rad, of unit quaternions `[..., 4]`."""
    turn = torch.where(turn[..., :1] < 0, -turn, turn)  # q and -q are one rotation
    sine = turn[..., 1:].norm(dim=-1, keepdim=True)
    angle = 2 * torch.atan2(sine, turn[..., :1])
    return torch.where(sine > 1e-12, angle / sine.clamp_min(1e-12), 2.0) * turn[..., 1:]


def limited_turn(qpos: Tensor, balls: Sequence[tuple[int, float]]) -> Tensor:
    """Positions `[N, nq]` in which no ball joint is turned further than its limit.

    Args:
        qpos: generalized positions.
        balls: position address and largest angle, rad, of every limited ball joint.
    """
    for address, largest in balls:
        where = torch.arange(address, address + 4, device=qpos.device)
        turn = rotation_vector(qpos[:, where])
        angle = turn.norm(dim=-1, keepdim=True)
        within = quaternion(turn * (largest / angle.clamp_min(1e-12)).clamp(max=1.0))
        qpos = qpos.index_copy(1, where, torch.where(angle > largest, within, qpos[:, where]))
    return qpos


def rotation_matrix(orientation: Tensor) -> Tensor:
    """Rotation matrices `[..., 3, 3]` of unit quaternions `[..., 4]`, real part first."""
    w, x, y, z = orientation.unbind(-1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def quaternion_product(first: Tensor, second: Tensor) -> Tensor:
    """Quaternion product `[..., 4]`: `second`, then `first`."""
    a, u, b, v = first[..., :1], first[..., 1:], second[..., :1], second[..., 1:]
    real = a * b - (u * v).sum(-1, keepdim=True)
    return torch.cat((real, a * v + b * u + torch.linalg.cross(u, v)), -1)


def _conjugate(turn: Tensor) -> Tensor:
    return torch.cat((turn[..., :1], -turn[..., 1:]), -1)
