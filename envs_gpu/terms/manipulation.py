"""What reaching, grasping and carrying are rewarded for: pure functions of batched quantities, unweighted.

Letters: N worlds, P pads of one finger. Sources: the reach and lift tasks of Isaac Lab, and PandaPickCube of
MuJoCo Playground.
"""

from __future__ import annotations

import torch
from torch import Tensor

from envs_gpu.terms.contact import normal_force
from envs_gpu.terms.pose import rotation_matrix


def distance(a: Tensor, b: Tensor) -> Tensor:
    """How far the points `a` and `b` `[N, 3]` are apart; `[N]`, m."""
    return torch.linalg.vector_norm(a - b, dim=-1)


def closeness(distance_m: Tensor, scale_m: float | Tensor) -> Tensor:
    """1 at a distance `[N]` of zero, 1 - tanh(distance / scale) elsewhere; `[N]`."""
    return 1.0 - (distance_m / scale_m).tanh()


def progress(value: Tensor, start: float, goal: float | Tensor) -> Tensor:
    """0 up to `start`, 1 from `goal` on, a straight line between; `[N]`."""
    return ((value - start) / (goal - start)).clamp(0.0, 1.0)


def pinch_force(left: Tensor, right: Tensor) -> Tensor:
    """The force that two fingers share, the weaker one's; `[N]`, N.

    Args:
        left: `[N, P * 3]` what the sensors of `add_normal_force_sensor` read at the pads of one finger.
        right: the same for the other finger.
    """
    return torch.minimum(normal_force(left), normal_force(right))


def rotation_columns(quaternion: Tensor) -> Tensor:
    """The x and the y axis of a frame turned by `quaternion` `[N, 4]` (w, x, y, z); `[N, 6]`.

    Unlike a quaternion, which means the same as its negative, and unlike angles, these never jump.
    Source: Zhou et al. 2019, "On the Continuity of Rotation Representations in Neural Networks".
    """
    unit = torch.nn.functional.normalize(quaternion, dim=-1)
    return rotation_matrix(unit)[..., :2].mT.flatten(-2)
