"""The keyframe that a robot starts from, with all its fields."""

from __future__ import annotations

import mujoco
import numpy as np

from envs_gpu.errors import SettingError
from envs_gpu.registry import nearest

FIELD = "env.keyframe"
REFERENCE = "qpos0"
"""Names the reference configuration of a model, where no keyframe is wanted."""
_CONNECT, _WELD = int(mujoco.mjtEq.mjEQ_CONNECT), int(mujoco.mjtEq.mjEQ_WELD)


def find_keyframe(model: mujoco.MjModel, keyframe: str | int | None, source: str) -> int | None:
    """The number of a keyframe of `model`; None is the reference configuration.

    Args:
        model: compiled.
        keyframe: its name or number, or `qpos0`; None takes the first one, if there is one.
        source: the MJCF file, for the error.

    Raises:
        SettingError: the model has no such keyframe.
    """
    names = [model.key(i).name for i in range(model.nkey)]
    if keyframe is None:
        return 0 if names else None
    if keyframe in names:
        return names.index(str(keyframe))
    if isinstance(keyframe, int) and 0 <= keyframe < model.nkey:
        return keyframe
    if keyframe == REFERENCE:
        return None
    guess = nearest(str(keyframe), [*names, REFERENCE])
    hint = f"did you mean {guess!r}? " if guess else ""
    known = ", ".join(name or str(number) for number, name in enumerate(names))
    fix = f"{hint}known: {', '.join(filter(None, (known, REFERENCE)))}"
    raise SettingError(FIELD, keyframe, f"{source} has no such keyframe", fix)


def data_at(model: mujoco.MjModel, keyframe: int | None) -> mujoco.MjData:
    """The state of a keyframe (`qpos qvel act ctrl mpos mquat`), and what follows from its positions."""
    data = mujoco.MjData(model)
    if keyframe is not None:
        mujoco.mj_resetDataKeyframe(model, data, keyframe)
    mujoco.mj_fwdPosition(model, data)
    return data


def move_mocap_bodies(spec: mujoco.MjSpec, model: mujoco.MjModel, data: mujoco.MjData) -> None:
    """Move the mocap bodies of `spec` to where they are in `data`, because engines start them from the model.

    Equality constraints keep what the compiler measured in the file's own arrangement.

    Args:
        spec: is changed.
        model: compiled from `spec` as it was.
        data: of `model`, at the keyframe.
    """
    moved = [body for body in range(model.nbody) if _is_elsewhere(model, data, body)]
    if not moved:
        return
    for number, equality in enumerate(spec.equalities):
        if model.eq_type[number] == _WELD:
            equality.data = model.eq_data[number]
        elif model.eq_type[number] == _CONNECT and _touches(model, number, moved):
            _connect_sites(spec, equality, model, number)
    for body in moved:
        mocap = model.body_mocapid[body]
        spec.bodies[body].pos, spec.bodies[body].quat = data.mocap_pos[mocap], data.mocap_quat[mocap]
        spec.bodies[body].alt.type = mujoco.mjtOrientation.mjORIENTATION_QUAT


def _is_elsewhere(model: mujoco.MjModel, data: mujoco.MjData, body: int) -> bool:
    mocap = model.body_mocapid[body]
    if mocap < 0:
        return False
    pairs = ((data.mocap_pos[mocap], model.body_pos[body]), (data.mocap_quat[mocap], model.body_quat[body]))
    return not all(np.allclose(there, here, rtol=0, atol=1e-12) for there, here in pairs)


def _touches(model: mujoco.MjModel, equality: int, bodies: list[int]) -> bool:
    is_body = model.eq_objtype[equality] == mujoco.mjtObj.mjOBJ_BODY
    return bool(is_body and {model.eq_obj1id[equality], model.eq_obj2id[equality]} & {*bodies})


def _connect_sites(
    spec: mujoco.MjSpec, equality: mujoco.MjsEquality, model: mujoco.MjModel, number: int
) -> None:
    """Give a `connect` two sites, because the compiler measures the anchor of its second body anew."""
    names = []
    for end, body in enumerate((model.eq_obj1id[number], model.eq_obj2id[number])):
        anchor = model.eq_data[number, 3 * end : 3 * end + 3]
        name = unused_name(f"anchor_{number}_{end}", [site.name for site in spec.sites])
        spec.bodies[body].add_site(name=name, pos=anchor)
        names.append(name)
    equality.objtype, (equality.name1, equality.name2) = mujoco.mjtObj.mjOBJ_SITE, names


def unused_name(name: str, used: list[str]) -> str:
    """`name`, or `name_2`, `name_3`, ..., whichever is not in `used`."""
    number, found = 1, name
    while found in used:
        number += 1
        found = f"{name}_{number}"
    return found
