"""Contact forces from MJCF contact sensors, which every backend computes alike."""

from __future__ import annotations

import mujoco
import torch
from torch import Tensor

_FIELDS = (
    mujoco.mjtConDataField.mjCONDATA_FORCE,
    mujoco.mjtConDataField.mjCONDATA_POS,
    mujoco.mjtConDataField.mjCONDATA_NORMAL,
    mujoco.mjtConDataField.mjCONDATA_TANGENT,
)


def add_contact_sensor(spec: mujoco.MjSpec, geom: str, against: str | None, num_contacts: int) -> str:
    """Add a sensor of up to `num_contacts` contacts of `geom` with the geom `against`; returns its name.

    A sensor matches single geoms, not bodies, because that is what MJX implements; `None` is any geom.
    """
    name = f"contact_{geom}_{against or 'any'}"
    sensor = spec.add_sensor(
        name=name,
        type=mujoco.mjtSensor.mjSENS_CONTACT,
        objtype=mujoco.mjtObj.mjOBJ_GEOM,
        objname=geom,
    )
    if against is not None:
        sensor.reftype, sensor.refname = mujoco.mjtObj.mjOBJ_GEOM, against
    reduce_none = 0
    sensor.intprm[:3] = [sum(1 << int(field) for field in _FIELDS), reduce_none, num_contacts]
    return name


def add_normal_force_sensor(spec: mujoco.MjSpec, geom: str, against: str, num_contacts: int) -> str:
    """Add a sensor of the force at up to `num_contacts` contacts of `geom` with `against`; returns its name.

    See `normal_force`. Far smaller than what `add_contact_sensor` adds.
    """
    name = add_contact_sensor(spec, geom, against, num_contacts)
    spec.sensor(name).intprm[0] = 1 << int(mujoco.mjtConDataField.mjCONDATA_FORCE)
    return name


def normal_force(contacts: Tensor) -> Tensor:
    """Sum of the normal forces `[...]`, N, that sensors of `add_normal_force_sensor` `[..., C * 3]` read."""
    return contacts.unflatten(-1, (-1, 3))[..., 0].abs().sum(-1)


def contact_wrench(contacts: Tensor, about: Tensor) -> Tensor:
    """Wrench of every contact on the first geom of its sensor.

    Args:
        contacts: `[N, num_contacts * 12]`, what sensors of `add_contact_sensor` read; free slots are zero.
        about: `[N, 3]` the point that torques are taken about, m.

    Returns:
        `[N, num_contacts, 6]` torque (Nm) then force (N) in the world's axes, as MuJoCo orders `cfrc_ext`.
        Friction torques (condim > 3) are not included.
    """
    slots = contacts.unflatten(-1, (-1, len(_FIELDS), 3))  # [N, num_contacts, 4, 3]
    force, point, normal, tangent = slots.unbind(-2)
    frame = (normal, tangent, torch.linalg.cross(normal, tangent))
    # The sensor reports the force that its first geom exerts on the second one.
    world = -sum(force[..., i : i + 1] * axis for i, axis in enumerate(frame))  # [N, num_contacts, 3]
    return torch.cat((torch.linalg.cross(point - about.unsqueeze(-2), world), world), dim=-1)
