"""What each engine honours of a model: the rest is refused in one line, never ignored.

MuJoCo Warp and MJX refuse much by themselves, and say why (`refusing` makes one line of it). What they take
and then ignore or do otherwise stands in `IGNORED`. `tests/envs_gpu/test_honours.py` walks MuJoCo's flags,
types and fields, and compares every engine with C. docs/engines.md shows the table.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import mujoco
import numpy as np

from envs_gpu.physics import _pairs
from envs_gpu.physics.base import UnsupportedModelError

ENGINES = ("mujoco", "warp", "newton", "mjx-warp", "mjx")
"""`mjx-warp` is `mjx` with `env.mjx_impl=warp`. The further right, the less is honoured."""
_DISABLE, _ENABLE = mujoco.mjtDisableBit, mujoco.mjtEnableBit
_WITHOUT_EFFECT = int(_DISABLE.mjDSBL_MIDPHASE) | int(_DISABLE.mjDSBL_AUTORESET)
"""Flags about how C works, not about what it computes; worlds keep a NaN on every engine."""
_MEASURES = int(_ENABLE.mjENBL_FWDINV)
"""A flag that adds a statistic."""
_SLEEPS = int(_ENABLE.mjENBL_SLEEP)
_NATIVE_CCD, _MULTI_CCD = int(_DISABLE.mjDSBL_NATIVECCD), int(_DISABLE.mjDSBL_MULTICCD)


class Ignored(NamedTuple):
    """Something that engines would take in silence, and do otherwise than C."""

    what: str
    """In MJCF's words."""
    used: Callable[[mujoco.MjModel], bool]
    """Whether a compiled model uses it."""
    engines: tuple[str, ...]
    """The engines that refuse it."""


def _any(*fields: str) -> Callable[[mujoco.MjModel], bool]:
    return lambda model: any(bool(np.any(getattr(model, field))) for field in fields)


def _flag(flag: int) -> Callable[[mujoco.MjModel], bool]:
    return lambda model: bool(model.opt.enableflags & int(flag))


def _disabled_and_stateful(model: mujoco.MjModel) -> bool:
    return bool((disabled_actuators(model) & (model.actuator_actnum > 0)).any())


def _discrete(model: mujoco.MjModel) -> bool:
    return bool(model.opt.integrator == mujoco.mjtIntegrator.mjINT_DISCRETE)


def _collides_without(flag: int, types: frozenset[frozenset[int]]) -> Callable[[mujoco.MjModel], bool]:
    """Whether the model switches `flag` off, and has a colliding pair of `types`, which the flag concerns."""
    return lambda model: (
        bool(model.opt.disableflags & flag) and not types.isdisjoint(_pairs.colliding_types(model))
    )


def _capsule_on_height_field(model: mujoco.MjModel) -> bool:
    kinds = frozenset((int(mujoco.mjtGeom.mjGEOM_HFIELD), int(mujoco.mjtGeom.mjGEOM_CAPSULE)))
    return kinds in _pairs.colliding_types(model)


def _swims_as_ellipsoid(model: mujoco.MjModel) -> bool:
    return bool((model.geom_fluid[:, 0] > 0).any())


def _measures_between_likes(model: mujoco.MjModel) -> bool:
    """Distances that MuJoCo Warp does not find; of boxes, because `prepared` has them collided as in C."""
    sensor, geom = mujoco.mjtSensor, mujoco.mjtGeom
    kinds = (sensor.mjSENS_GEOMDIST, sensor.mjSENS_GEOMNORMAL, sensor.mjSENS_GEOMFROMTO)
    for number in np.flatnonzero(np.isin(model.sensor_type, kinds)):
        first = _geom_types(model, model.sensor_objtype[number], model.sensor_objid[number])
        second = _geom_types(model, model.sensor_reftype[number], model.sensor_refid[number])
        if first & second & {int(geom.mjGEOM_CAPSULE), int(geom.mjGEOM_BOX)}:
            return True
    return False


def _geom_types(model: mujoco.MjModel, kind: int, number: int) -> set[int]:
    geoms = [number] if kind == mujoco.mjtObj.mjOBJ_GEOM else model.geom_bodyid == number
    return set(model.geom_type[geoms].tolist())


_OTHERS = ENGINES[1:]
IGNORED = (
    Ignored("plugins", lambda model: model.nplugin > 0, _OTHERS),
    Ignored("SDF geoms", lambda model: mujoco.mjtGeom.mjGEOM_SDF in model.geom_type, _OTHERS),
    Ignored("the flag override", _flag(_ENABLE.mjENBL_OVERRIDE), _OTHERS),
    Ignored("the flag diagexact", _flag(_ENABLE.mjENBL_DIAGEXACT), _OTHERS),
    Ignored("the flag ipc", _flag(_ENABLE.mjENBL_IPC), ENGINES),
    Ignored("delays of actuators and sensors", lambda model: model.nhistory > 0, _OTHERS),
    Ignored("an actuator with a state in a disabled group", _disabled_and_stateful, _OTHERS),
    Ignored(
        "nativeccd=disable for convex collisions", _collides_without(_NATIVE_CCD, _pairs.CONVEX), _OTHERS
    ),
    Ignored(
        "multiccd=disable for convex collisions", _collides_without(_MULTI_CCD, _pairs.MANY_POINTS), ("mjx",)
    ),
    Ignored(
        "distance sensors between two capsules or two boxes",
        _measures_between_likes,
        ("warp", "newton", "mjx-warp"),
    ),
    Ignored("fluidshape=ellipsoid", _swims_as_ellipsoid, ("mjx",)),
    Ignored("the discrete integrator", _discrete, ("mjx",)),
    Ignored("collisions of capsules with height fields", _capsule_on_height_field, ("mjx",)),
    Ignored("flexes", lambda model: model.nflex > 0, ("newton", "mjx")),
    Ignored("actuators with several controls", lambda model: model.nu != model.nactuator, ("mjx",)),
    Ignored("noslip_iterations", lambda model: model.opt.noslip_iterations > 0, ("mjx",)),
    Ignored("actearly", _any("actuator_actearly"), ("mjx",)),
    Ignored("damping of actuators", _any("actuator_damping"), ("mjx",)),
    Ignored(
        "polynomial stiffness and damping",
        _any(
            *("jnt_stiffnesspoly", "dof_dampingpoly", "tendon_stiffnesspoly", "tendon_dampingpoly"),
            "actuator_dampingpoly",
        ),
        ("mjx",),
    ),
    Ignored("surface velocities", _any("geom_surfacevel"), ("mjx",)),
    Ignored("adhesion of geoms", _any("geom_adhesion", "pair_adhesion"), ("mjx",)),
)


def check(model: mujoco.MjModel, engine: str) -> None:
    """Check that `engine` (one of `ENGINES`) honours everything that `model` uses.

    Raises:
        UnsupportedModelError: it does not; the message names what, and the nearest engine that does.
    """
    for ignored in IGNORED:
        if engine in ignored.engines and ignored.used(model):
            raise UnsupportedModelError(
                f"{_label(engine)} cannot simulate {ignored.what} of this model; {_advice(model, engine)}"
            )


def prepared(model: mujoco.MjModel, engine: str) -> mujoco.MjModel:
    """A copy of `model` for `engine` that says the same in terms that the engine honours.

    Actuators of a disabled group exert no force, flags without effect on the motion are taken away, and no
    body sleeps: it saves time only, and which body sleeps is not part of the state. MuJoCo Warp collides
    boxes as C does where `nativeccd` is off; by its own search it was up to 1 rad/s away after a timestep.

    Raises:
        UnsupportedModelError: as `check`.
    """
    check(model, engine)
    own = copy.copy(model)
    own.opt.enableflags &= ~_SLEEPS
    own.tree_sleep_policy[:] = mujoco.mjtSleepPolicy.mjSLEEP_AUTO_NEVER
    if engine == "mujoco":
        return own
    own.opt.disableflags &= ~_WITHOUT_EFFECT
    own.opt.enableflags &= ~_MEASURES
    if engine != "mjx":
        own.opt.disableflags |= _NATIVE_CCD
    if engine == "mjx":
        own.opt.enableflags &= ~int(_ENABLE.mjENBL_ENERGY)
        _switch_off_passive(own)
    off = disabled_actuators(model)
    own.actuator_gaintype[off] = mujoco.mjtGain.mjGAIN_FIXED
    own.actuator_biastype[off] = mujoco.mjtBias.mjBIAS_NONE
    own.actuator_gainprm[off] = own.actuator_biasprm[off] = 0.0
    own.opt.disableactuator = 0
    return own


def _switch_off_passive(model: mujoco.MjModel) -> None:
    """Take stiffness or damping out of `model`, where a flag switches one of them off.

    MJX leaves out every passive force as soon as one of the flags is set, C only where both are.
    """
    spring, damper = int(_DISABLE.mjDSBL_SPRING), int(_DISABLE.mjDSBL_DAMPER)
    switched_off = model.opt.disableflags & (spring | damper)
    if switched_off == spring:
        model.jnt_stiffness[:] = model.tendon_stiffness[:] = 0.0
    elif switched_off == damper:
        model.dof_damping[:] = model.tendon_damping[:] = 0.0
    else:
        return
    model.opt.disableflags &= ~switched_off


def disabled_actuators(model: mujoco.MjModel) -> np.ndarray:
    """`[nactuator]` bool: the actuator is in a group of `actuatorgroupdisable`."""
    group = model.actuator_group
    switchable = (group >= 0) & (group <= 30)
    off: np.ndarray = switchable & ((model.opt.disableactuator >> np.clip(group, 0, 30)) & 1).astype(bool)
    return off


@contextlib.contextmanager
def refusing(model: mujoco.MjModel, engine: str) -> Iterator[None]:
    """Turn an engine's own refusal of `model` into one line that names the nearest engine that can.

    Raises:
        UnsupportedModelError: instead of `NotImplementedError` and `ValueError`.
    """
    try:
        yield
    except UnsupportedModelError:
        raise
    except (NotImplementedError, ValueError) as error:
        reason = " ".join(" ".join(map(str, error.args)).split()).rstrip(".")
        reason = re.sub(r"(?<=geom types )(\d+), (\d+)", _in_words, reason)  # of MJX
        raise UnsupportedModelError(
            f"{_label(engine)} cannot simulate this model: {reason}; {_advice(model, engine)}"
        ) from error


def _in_words(types: re.Match[str]) -> str:
    """Two numbers of `mjtGeom` as MJCF calls them."""
    names = [mujoco.mjtGeom(int(number)).name for number in types.groups()]
    return " and ".join(name.removeprefix("mjGEOM_").lower() for name in names)


def _label(engine: str) -> str:
    return "mjx with env.mjx_impl=warp" if engine == "mjx-warp" else engine


def _advice(model: mujoco.MjModel, engine: str) -> str:
    """The nearest engine that can, as a setting."""
    nearer = {"mjx": ("mjx-warp", "mujoco"), "mjx-warp": ("mujoco",), "newton": ("warp", "mujoco")}
    for other in nearer.get(engine, ("mujoco",)):
        if other != engine and _runs(model, other):
            return "set env.mjx_impl=warp" if other == "mjx-warp" else f"set env.backend={other}"
    return "no engine here can; take it out of the model"


def _runs(model: mujoco.MjModel, engine: str) -> bool:
    if any(engine in ignored.engines and ignored.used(model) for ignored in IGNORED):
        return False
    if engine == "mujoco":
        return True
    if importlib.util.find_spec("mujoco_warp") is None:
        return False
    import mujoco_warp

    from envs_gpu.physics._solver import with_newton

    try:
        mujoco_warp.put_model(with_newton(prepared(model, engine)))
    except (NotImplementedError, ValueError):
        return False  # MuJoCo Warp refuses the model, so the message advises C MuJoCo
    return True


def table() -> str:
    """`IGNORED` in Markdown, as docs/engines.md shows it."""
    names = {"mjx-warp": "mjx (Warp)", "mjx": "mjx (JAX)"}
    rows = [f"| | {' | '.join(names.get(engine, engine) for engine in ENGINES)} |", "|---" * 6 + "|"]
    for ignored in IGNORED:
        cells = ("refused" if engine in ignored.engines else "as C" for engine in ENGINES)
        rows.append(f"| {ignored.what} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"
