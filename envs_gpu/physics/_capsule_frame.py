"""The contact frame of a capsule on a plane, as C MuJoCo has it, for MuJoCo Warp and both kinds of MJX.

C lays the first tangent along the capsule's axis, projected on the plane, however short the projection.
MuJoCo Warp and MJX 3.17 replace it by a fixed world axis where the unit axis projects to less than 0.5, that
is on every capsule that stands steeper than 60 degrees (google-deepmind/mujoco#2774). A pyramidal friction
cone has its edges along the tangents, so friction differs: Gymnasium's Ant, whose legs are capsules, is 2 cm
away from C after five control steps, and 3e-7 m with the frame below.

Where a capsule stands so straight that the projection is rounding noise, the frame is noise in C as well.
"""

from __future__ import annotations

import functools
from typing import Any

_corrected: set[str] = set()


def correct_warp(primitive: Any) -> None:
    """Give a `collision_primitive` module of MuJoCo Warp the frame; before its first kernel is built."""
    from envs_gpu.physics._warp_kernels import with_capsule_tangent

    if primitive.__name__ not in _corrected:
        _corrected.add(primitive.__name__)
        primitive.plane_capsule = with_capsule_tangent(primitive.plane_capsule)


def correct_mjx(driver: Any) -> None:
    """Give MJX's `collision_driver` the frame; before the first function is traced."""
    import jax.numpy as jnp

    if driver.__name__ in _corrected:
        return
    _corrected.add(driver.__name__)
    pair = (driver.GeomType.PLANE, driver.GeomType.CAPSULE)
    original = driver._COLLISION_FUNC[pair]

    @functools.wraps(original)  # takes its `ncon` along
    def plane_capsule(model: Any, data: Any, key: Any, geom: Any) -> Any:
        dist, pos, frame = original(model, data, key, geom)
        normal = data.geom_xmat[geom[:, 0], :, 2]  # [P, 3], P pairs
        axis = data.geom_xmat[geom[:, 1], :, 2]  # [P, 3]
        tangent = axis - normal * (normal * axis).sum(-1, keepdims=True)
        length = jnp.linalg.norm(tangent, axis=-1, keepdims=True)
        tangent = tangent / length
        aligned = jnp.stack((normal, tangent, jnp.cross(normal, tangent)), axis=-2)  # [P, 3, 3]
        aligned = jnp.repeat(aligned, original.ncon, axis=0)  # a frame for each end
        has_direction = jnp.repeat(length > 1e-15, original.ncon, axis=0)[..., None]
        return dist, pos, jnp.where(has_direction, aligned, frame)

    driver._COLLISION_FUNC[pair] = plane_capsule
