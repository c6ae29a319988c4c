"""What runs on the device beside MuJoCo Warp's own kernels."""
# mypy: ignore-errors
# Warp's dialect of Python: arrays are indexed by world, and shapes are known to Warp only.

import warp as wp

_SHORTEST = 1e-15  # C's mjMINVAL: below it a vector has no direction


@wp.kernel
def restart_worlds(
    mask: wp.array[wp.bool],
    new_qpos: wp.array2d[wp.float32],
    new_qvel: wp.array2d[wp.float32],
    new_act: wp.array[wp.float32],
    qpos: wp.array2d[wp.float32],
    qvel: wp.array2d[wp.float32],
    act: wp.array2d[wp.float32],
    ctrl: wp.array2d[wp.float32],
    time: wp.array[wp.float32],
    qacc_warmstart: wp.array2d[wp.float32],
):
    """The masked worlds take the new positions, velocities and activations; all else becomes zero."""
    world = wp.tid()
    if not mask[world]:
        return
    for i in range(qpos.shape[1]):
        qpos[world, i] = new_qpos[world, i]
    for i in range(qvel.shape[1]):
        qvel[world, i] = new_qvel[world, i]
        qacc_warmstart[world, i] = 0.0
    for i in range(act.shape[1]):
        act[world, i] = new_act[i]
    for i in range(ctrl.shape[1]):
        ctrl[world, i] = 0.0
    time[world] = 0.0


@wp.kernel
def keep_unmasked(
    mask: wp.array[wp.bool], before: wp.array2d[wp.float32], sensordata: wp.array2d[wp.float32]
):
    """The worlds outside the mask get their sensor values back."""
    world, i = wp.tid()
    if not mask[world]:
        sensordata[world, i] = before[world, i]


def with_capsule_tangent(original):
    """MuJoCo Warp's `plane_capsule`, with the first tangent along the capsule's projected axis."""

    @wp.func
    def plane_capsule(
        plane_normal: wp.vec3,
        plane_pos: wp.vec3,
        capsule_pos: wp.vec3,
        capsule_axis: wp.vec3,
        capsule_radius: float,
        capsule_half_length: float,
    ):
        dist, pos, frame = original(
            plane_normal, plane_pos, capsule_pos, capsule_axis, capsule_radius, capsule_half_length
        )
        tangent = capsule_axis - plane_normal * wp.dot(plane_normal, capsule_axis)
        length = wp.length(tangent)
        if length > _SHORTEST:
            tangent = tangent / length
            frame = wp.matrix_from_rows(plane_normal, tangent, wp.cross(plane_normal, tangent))
        return dist, pos, frame

    return plane_capsule
