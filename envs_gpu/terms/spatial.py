"""Spatial inertia and velocity of bodies about one point, as MuJoCo's `cinert` and `cvel` hold them.

Letters: N worlds, B bodies. Source: Featherstone 2008, "Rigid Body Dynamics Algorithms", chapter 2; the point
is the centre of mass of the whole tree, and the axes are the world's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from envs_gpu.terms.pose import rotation_matrix


def inertia_about(
    point: Tensor, mass: Tensor, principal: Tensor, position: Tensor, quaternion: Tensor
) -> Tensor:
    """Spatial inertia of every body about `point`.

    Args:
        point: `[N, 3]`, m.
        mass: `[B]`, kg.
        principal: `[B, 3]` principal moments of inertia, kg m².
        position: `[N, B, 3]` the bodies' centres of mass, m.
        quaternion: `[N, B, 4]` orientations of their principal axes.

    Returns:
        `[N, B, 10]`: the inertia's elements xx, yy, zz, xy, xz, yz (kg m²), mass times offset (kg m), mass.
    """
    axes = rotation_matrix(quaternion)  # [N, B, 3, 3], a column a principal axis
    offset = position - point.unsqueeze(-2)  # [N, B, 3]
    x, y, z = offset.unbind(-1)
    # Steiner's theorem, element by element: mass (|offset|² 1 - offset offsetᵀ).
    steiner = torch.stack((y * y + z * z, x * x + z * z, x * x + y * y, -x * y, -x * z, -y * z), -1)
    a, b, c = axes.unbind(-2)
    first, second = torch.stack((a, b, c, a, a, b), -2), torch.stack((a, b, c, b, c, c), -2)
    turned = (first * second * principal.unsqueeze(-2)).sum(-1)  # [N, B, 6]
    weight = mass.unsqueeze(-1)  # [B, 1]
    return torch.cat((turned + weight * steiner, weight * offset, weight.expand(len(offset), -1, -1)), -1)


def velocity_about(point: Tensor, linear: Tensor, angular: Tensor, position: Tensor) -> Tensor:
    """Spatial velocity `[N, B, 6]` of every body at `point` `[N, 3]`: angular (rad/s), then linear (m/s).

    Args:
        point: m; a body's linear velocity is that of its material that is at this point.
        linear: `[N, B, 3]` velocity of the body at `position`, m/s.
        angular: `[N, B, 3]`, rad/s.
        position: `[N, B, 3]`, m.
    """
    at_point = linear + torch.linalg.cross(angular, point.unsqueeze(-2) - position)
    return torch.cat((angular, at_point), -1)
