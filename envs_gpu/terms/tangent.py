"""Moving along velocities: positions have quaternions in them, velocities have not."""

from __future__ import annotations

import mujoco
import torch
from torch import Tensor

_JOINT = mujoco.mjtJoint
_SMALLEST_RAD = 1e-12


class Tangent:
    """Where a model's positions and velocities lie."""

    def __init__(self, model: mujoco.MjModel, device: torch.device) -> None:
        plain: list[tuple[int, int]] = []
        turning: list[tuple[int, int]] = []
        for kind, qpos, dof in zip(model.jnt_type, model.jnt_qposadr, model.jnt_dofadr, strict=True):
            if kind == _JOINT.mjJNT_FREE:
                plain += [(qpos + i, dof + i) for i in range(3)]
                turning.append((qpos + 3, dof + 3))
            elif kind == _JOINT.mjJNT_BALL:
                turning.append((qpos, dof))
            else:
                plain.append((qpos, dof))
        self._plain = torch.tensor(plain, dtype=torch.int64, device=device).view(-1, 2).T  # [2, ...]
        self._turning = turning

    def move(self, qpos: Tensor, change: Tensor) -> Tensor:
        """`qpos` `[N, nq]` moved by `change` `[N, nv]`, turns in the body's frame, as `mj_integratePos`."""
        moved = qpos.clone()
        positions, dofs = self._plain
        moved[:, positions] += change[:, dofs]
        for position, dof in self._turning:
            turn = quaternion(change[:, dof : dof + 3])
            moved[:, position : position + 4] = multiply(qpos[:, position : position + 4], turn)
        return moved


def quaternion(rotation: Tensor) -> Tensor:
    """A rotation vector `[N, 3]`, rad, as a unit quaternion `[N, 4]`, real part first."""
    angle = rotation.norm(dim=-1, keepdim=True)
    axis = rotation / angle.clamp(min=_SMALLEST_RAD)
    return torch.cat(((0.5 * angle).cos(), (0.5 * angle).sin() * axis), -1)


def multiply(one: Tensor, other: Tensor) -> Tensor:
    """The product of quaternions `[N, 4]`, normalized: first the turn `other`, then `one`."""
    w, x, y, z = one.unbind(-1)
    a, b, c, d = other.unbind(-1)
    product = torch.stack(
        (
            w * a - x * b - y * c - z * d,
            w * b + x * a + y * d - z * c,
            w * c - x * d + y * a + z * b,
            w * d + x * c - y * b + z * a,
        ),
        -1,
    )
    return product / product.norm(dim=-1, keepdim=True)
