"""How positions and velocities of any model change: what a learned model of its dynamics reads and predicts.

Nothing that is predicted depends on where the robot is on flat ground, or on the direction that it faces. Of
a free joint the height and the direction of gravity in the body's frame are read, and its velocity is that
in the body's frame.

Letters: N worlds, nq positions, nv velocities, F features.
"""

from __future__ import annotations

from collections.abc import Collection

import mujoco
import torch
from torch import Tensor

from envs_gpu.terms.pose import Pose, rotation_matrix

_JOINT = mujoco.mjtJoint


class Motion:
    """What moves in `model`, on `device`.

    Args:
        model: the compiled scene.
        uniform: addresses in `qpos` that the dynamics do not depend on, see `Task.uniform_positions`.
        control_dt: length of a step, s.
        device: where the tensors are.
    """

    def __init__(
        self, model: mujoco.MjModel, uniform: Collection[int], control_dt: float, device: torch.device
    ) -> None:
        self.pose, self.control_dt = Pose(model, device), control_dt
        self.num_positions, self.num_velocities = int(model.nq), int(model.nv)
        numbers, angles = [], []
        self._free: list[tuple[int, int]] = []  # (position, velocity) addresses
        self._balls: list[int] = []
        joints = zip(
            model.jnt_type,
            model.jnt_qposadr.tolist(),
            model.jnt_dofadr.tolist(),
            model.jnt_limited,
            strict=True,
        )
        for kind, qpos, dof, is_limited in joints:
            if kind == _JOINT.mjJNT_FREE:
                self._free.append((qpos, dof))
            elif kind == _JOINT.mjJNT_BALL:
                self._balls.append(qpos)
            elif kind == _JOINT.mjJNT_HINGE and not is_limited:
                angles.append(qpos)
            elif qpos not in uniform:
                numbers.append(qpos)
        self._numbers = torch.tensor(numbers, dtype=torch.int64, device=device)
        self._angles = torch.tensor(angles, dtype=torch.int64, device=device)
        of_roots = 4 * (len(self._free) + len(self._balls))
        self.num_features = len(numbers) + 2 * len(angles) + of_roots + self.num_velocities
        """F."""

    def features(self, qpos: Tensor, qvel: Tensor) -> Tensor:
        """What the dynamics depend on `[N, F]`, of `qpos` `[N, nq]` and `qvel` `[N, nv]`."""
        angles = qpos.index_select(1, self._angles)
        pieces = [qpos.index_select(1, self._numbers), angles.cos(), angles.sin()]
        for address, _ in self._free:
            gravity = -rotation_matrix(qpos[:, address + 3 : address + 7])[:, 2]  # [N, 3]
            pieces += [qpos[:, address + 2 : address + 3], gravity]
        for address in self._balls:
            turn = qpos[:, address : address + 4]
            pieces.append(torch.where(turn[:, :1] < 0, -turn, turn))  # q and -q are one rotation
        return torch.cat((*pieces, self._to_body(qpos, qvel)), -1)

    def change(self, qpos: Tensor, qvel: Tensor, next_qpos: Tensor, next_qvel: Tensor) -> Tensor:
        """What happened in a step `[N, 2 nv]`: `advance` with it leads from the first state to the second.

        The first half is the change of the velocity. The second half is the mean velocity during the step,
        minus the mean of the velocities before and after it. Both are in the body's frame before the step.
        """
        mean = self.pose.difference(next_qpos, qpos) / self.control_dt
        rest = mean - 0.5 * (qvel + next_qvel)
        return torch.cat((self._to_body(qpos, next_qvel - qvel), self._to_body(qpos, rest)), -1)

    def advance(self, qpos: Tensor, qvel: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
        """The state after a step, `[N, nq]` and `[N, nv]`; `change` `[N, 2 nv]` is as `change` gives it."""
        faster, rest = change.chunk(2, -1)
        next_qvel = qvel + self._to_world(qpos, faster)
        mean = 0.5 * (qvel + next_qvel) + self._to_world(qpos, rest)
        return self.pose.displace(qpos, self.control_dt * mean), next_qvel

    def _to_body(self, qpos: Tensor, velocity: Tensor) -> Tensor:
        """`velocity` `[N, nv]` with the linear velocities of free joints in the frames of their bodies."""
        for address, dof in self._free:
            axes = rotation_matrix(qpos[:, address + 3 : address + 7])
            linear = (axes.mT @ velocity[:, dof : dof + 3, None]).squeeze(-1)
            velocity = torch.cat((velocity[:, :dof], linear, velocity[:, dof + 3 :]), -1)
        return velocity

    def _to_world(self, qpos: Tensor, velocity: Tensor) -> Tensor:
        """The inverse of `_to_body`."""
        for address, dof in self._free:
            axes = rotation_matrix(qpos[:, address + 3 : address + 7])
            linear = (axes @ velocity[:, dof : dof + 3, None]).squeeze(-1)
            velocity = torch.cat((velocity[:, :dof], linear, velocity[:, dof + 3 :]), -1)
        return velocity
