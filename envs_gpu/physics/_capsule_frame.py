"""The contact frame of a capsule on a plane, as C MuJoCo has it, for MuJoCo Warp and both kinds of MJX.

C lays the first tangent along the capsule's axis, projected on the plane, however short the projection.
MuJoCo Warp and MJX 3.17 replace it by a fixed world axis once the projection of the unit axis is shorter than
0.5, that is on every capsule that stands steeper than 60 degrees (google-deepmind/mujoco#2774). A pyramidal
friction cone has its edges along the tangents, so friction differs: Gymnasium's Ant, whose legs are capsules,
leaves C by 2 cm within five control steps, and by 3e-7 m with the frame below.

Where a capsule stands so straight that the projection is rounding noise, the frame is noise in C as well.
"""

from __future__ import annotations

from typing import Any

_SHORTEST = 1e-15
"""C's mjMINVAL: below it there is no direction to normalize."""


def correct_warp(primitive: Any) -> None:
    """Give a `collision_primitive` module of MuJoCo Warp the frame; before its first kernel is built."""
    import warp as wp

    original = primitive.plane_capsule
    if getattr(original, "follows_capsule", False):
        return

    @wp.func
    def plane_capsule(
        plane_normal: wp.vec3,
        plane_pos: wp.vec3,
        capsule_pos: wp.vec3,
        capsule_axis: wp.vec3,
        capsule_radius: float,
        capsule_half_length: float,
    ):  # type: ignore[no-untyped-def]
        dist, pos, frame = original(
            plane_normal, plane_pos, capsule_pos, capsule_axis, capsule_radius, capsule_half_length
        )
        tangent = capsule_axis - plane_normal * wp.dot(plane_normal, capsule_axis)
        length = wp.length(tangent)
        if length > _SHORTEST:
            tangent = tangent / length
            frame = wp.matrix_from_rows(plane_normal, tangent, wp.cross(plane_normal, tangent))
        return dist, pos, frame

    plane_capsule.follows_capsule = True
    primitive.plane_capsule = plane_capsule


def correct_mjx(driver: Any) -> None:
    """Give MJX's `collision_driver` the frame; before the first function is traced."""
    import jax.numpy as jnp

    pair = (driver.GeomType.PLANE, driver.GeomType.CAPSULE)
    original = driver._COLLISION_FUNC[pair]
    if getattr(original, "follows_capsule", False):
        return

    def plane_capsule(model: Any, data: Any, key: Any, geom: Any) -> Any:
        dist, pos, frame = original(model, data, key, geom)
        normal = data.geom_xmat[geom[:, 0], :, 2]  # [P, 3]
        axis = data.geom_xmat[geom[:, 1], :, 2]  # [P, 3]
        tangent = axis - normal * (normal * axis).sum(-1, keepdims=True)
        length = jnp.linalg.norm(tangent, axis=-1, keepdims=True)
        tangent = tangent / jnp.maximum(length, _SHORTEST)
        aligned = jnp.stack((normal, tangent, jnp.cross(normal, tangent)), axis=-2)  # [P, 3, 3]
        aligned = jnp.where(length[..., None] > _SHORTEST, aligned, frame[:: original.ncon])
        return dist, pos, jnp.repeat(aligned, original.ncon, axis=0)  # both ends share a frame

    plane_capsule.ncon = original.ncon
    plane_capsule.follows_capsule = True
    driver._COLLISION_FUNC[pair] = plane_capsule
