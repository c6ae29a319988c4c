"""Small models in which one thing at a time matters, generated from MuJoCo's own enums and fields.

A `Case` is a model that differs from another one in one thing. `test_honours` steps both in C, so that the
thing is seen to matter, and then asks every engine to do as C does or to refuse.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import mujoco
import numpy as np

SCENE = """
<mujoco>
  <option timestep="0.004" integrator="Euler" density="1.2" viscosity="0.002" wind="0.3 0.2 0"/>
  <default><geom friction="0.8 0.02 0.001"/></default>
  <worldbody>
    <geom name="floor" type="plane" size="5 5 1" condim="3" margin="0.002"/>
    <body name="ball" pos="0 0 0.097">
      <joint name="x" type="slide" axis="1 0 0" damping="0.2"/>
      <joint name="z" type="slide" axis="0 0 1"/>
      <joint name="roll" type="hinge" axis="0 1 0" frictionloss="0.02" armature="0.002"/>
      <geom name="ball" size="0.1" mass="1" condim="3" margin="0.002"/>
      <body name="arm" pos="0.05 0 0.1" gravcomp="0.3">
        <joint name="arm" axis="0 1 0" damping="0.1" stiffness="0.4" springref="10" limited="true"
         range="-5 5" actuatorfrclimited="true" actuatorfrcrange="-3 3"/>
        <geom name="arm" type="capsule" size="0.03" fromto="0 0 0 0.2 0 0.1" mass="0.3" contype="0"
         conaffinity="0"/>
        <site name="hand" pos="0.2 0 0.1"/>
      </body>
    </body>
    <body name="far" pos="1 0 0.3">
      <joint name="far" axis="0 1 0" damping="0.05"/>
      <geom name="far" type="capsule" size="0.02" fromto="0 0 0 -0.2 0 0" mass="0.2" contype="0"
       conaffinity="0"/>
      <site name="far" pos="-0.2 0 0"/>
    </body>
  </worldbody>
  <tendon>
    <fixed name="sum" limited="true" range="-0.1 0.1" stiffness="0.3" damping="0.05" frictionloss="0.02">
      <joint joint="arm" coef="1"/><joint joint="far" coef="-0.7"/>
    </fixed>
    <spatial name="string" stiffness="2" springlength="0.1"><site site="hand"/><site site="far"/></spatial>
  </tendon>
  <equality>
    <joint name="coupled" joint1="far" joint2="roll" polycoef="0.05 0.5 0 0 0" solref="0.03 1"/>
  </equality>
  <actuator>
    <position name="servo" joint="arm" kp="3" kv="0.1" ctrlrange="-1 1" group="1"/>
    <general name="lag" joint="roll" gear="0.5" ctrlrange="-0.5 0.5" dyntype="filter" dynprm="0.05"
     actlimited="true" actrange="-0.2 0.2"/>
    <motor name="pull" tendon="sum" gear="0.2" ctrlrange="-1 1" forcelimited="true" forcerange="-0.1 0.1"/>
  </actuator>
</mujoco>
"""


class Case(NamedTuple):
    """A model in which one thing differs from `base`."""

    name: str
    base: mujoco.MjModel
    model: mujoco.MjModel
    mjcf: str
    """Of the base, for an engine that reads text."""


def _spec(mjcf: str) -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_string(mjcf)


def changed(name: str, change: Callable[[mujoco.MjModel], None], mjcf: str = SCENE) -> Case:
    base, model = _spec(mjcf), _spec(mjcf)
    change(model)
    return Case(name, base, model, mjcf)


def written(name: str, old: str, new: str, mjcf: str = SCENE) -> Case:
    assert old in mjcf, old
    text = mjcf.replace(old, new)
    return Case(name, _spec(mjcf), _spec(text), text)


def flags() -> Iterator[Case]:
    """Every flag that can be switched, alone."""
    for enum, field in ((mujoco.mjtDisableBit, "disableflags"), (mujoco.mjtEnableBit, "enableflags")):
        for name, flag in enum.__members__.items():
            if not name.startswith(("mjDSBL_", "mjENBL_")):
                continue  # mjNDISABLE, their number

            def switch(model, field=field, flag=int(flag)):
                setattr(model.opt, field, getattr(model.opt, field) | flag)
                if flag == int(mujoco.mjtEnableBit.mjENBL_OVERRIDE):
                    model.opt.o_solref[:] = (0.1, 1)

            yield changed(name, switch)
    yield changed("actuatorgroupdisable", lambda model: setattr(model.opt, "disableactuator", 1 << 1))


def choices() -> Iterator[Case]:
    """Every integrator, cone, Jacobian and solver."""
    for enum, field in (
        (mujoco.mjtIntegrator, "integrator"),
        (mujoco.mjtCone, "cone"),
        (mujoco.mjtJacobian, "jacobian"),
        (mujoco.mjtSolver, "solver"),
    ):
        for name, value in enum.__members__.items():
            yield changed(name, lambda model, f=field, v=int(value): setattr(model.opt, f, v))


_KINDS = ("body", "jnt", "dof", "geom", "site", "tendon", "actuator", "eq", "pair")


def numbers(mjcf: str = SCENE, of: str = "") -> Iterator[Case]:
    """Every field of floating-point numbers, each number of which is a bit different."""
    model = _spec(mjcf)
    fields = [name for name in dir(model) if name.partition("_")[0] in _KINDS and "_" in name]
    # C looks at these only where the compiler saw them: `kinds` has a case of them.
    compiled = ("actuator_damping", "actuator_dampingpoly", "geom_fluid")
    fields = [name for name in fields if name not in compiled]
    fields += [f"opt.{name}" for name in dir(model.opt) if not name.startswith("_")]
    for field in fields:
        value = getattr(model.opt, field[4:]) if field.startswith("opt.") else getattr(model, field)
        kind = np.asarray(value).dtype.kind
        if kind != "f" or not np.asarray(value).size or field.endswith("_user"):
            continue

        def nudge(model, field=field):
            owner, name = (model.opt, field[4:]) if field.startswith("opt.") else (model, field)
            old = np.asarray(getattr(owner, name), dtype=float)
            factor = 1.02 if "solimp" in name else 1.2  # impedances are below one
            new = old * factor + 0.003 * np.where(old == 0, 1, np.sign(old))
            if name.startswith("body"):
                new[0] = old[0]  # no file moves the world, and no engine asks where it is
            if name.endswith("quat"):
                new = new / np.linalg.norm(new, axis=-1, keepdims=True)
            if isinstance(getattr(owner, name), np.ndarray):
                getattr(owner, name)[:] = new
            else:
                setattr(owner, name, float(new))

        case = changed(f"{of}{field}", nudge, mjcf)
        for model in (case.base, case.model):  # C skips frames that the compiler saw to coincide
            for frames in (model.body_sameframe, model.geom_sameframe, model.site_sameframe):
                frames[:] = mujoco.mjtSameFrame.mjSAMEFRAME_NONE
        yield case


_SERVO = '<position name="servo" joint="arm" kp="3" kv="0.1" ctrlrange="-1 1" group="1"/>'
_COUPLED = '<joint name="coupled" joint1="far" joint2="roll" polycoef="0.05 0.5 0 0 0" solref="0.03 1"/>'
ACTUATORS = {
    "mjDYN_NONE": '<general joint="arm" ctrlrange="-1 1" gainprm="2"/>',
    "mjDYN_INTEGRATOR": '<intvelocity joint="arm" ctrlrange="-1 1" kp="4" actrange="-1 1"/>',
    "mjDYN_FILTER": '<general joint="arm" ctrlrange="-1 1" dyntype="filter" dynprm="0.02" gainprm="2"/>',
    "mjDYN_FILTEREXACT": '<general joint="arm" ctrlrange="-1 1" dyntype="filterexact" dynprm="0.02"/>',
    "mjDYN_MUSCLE": '<muscle joint="arm" ctrlrange="0 1" force="3" lengthrange="-1 1"/>',
    "mjDYN_PID": '<pid joint="arm" ctrlrange="-1 1" kp="3" ki="1"/>',
    "mjDYN_DCMOTOR": '<dcmotor joint="arm" ctrlrange="-6 6" motorconst="0.05" resistance="1"/>',
    "mjGAIN_FIXED": '<motor joint="arm" ctrlrange="-1 1" gear="2"/>',
    "mjGAIN_AFFINE": '<damper joint="arm" ctrlrange="0 1" kv="2"/>',
    "mjBIAS_AFFINE": '<velocity joint="arm" ctrlrange="-1 1" kv="2"/>',
    "mjTRN_JOINTINPARENT": '<motor jointinparent="arm" ctrlrange="-1 1"/>',
    "mjTRN_SLIDERCRANK": '<motor cranksite="hand" slidersite="far" cranklength="1.5" ctrlrange="-1 1"/>',
    "mjTRN_TENDON": '<motor tendon="string" ctrlrange="-1 1"/>',
    "mjTRN_SITE": '<motor site="hand" refsite="far" gear="1 0.5 0 0 0.2 0" ctrlrange="-1 1"/>',
    "mjTRN_BODY": '<adhesion body="ball" ctrlrange="0 1" gain="5"/>',
    "gravcomp": '<motor joint="arm" ctrlrange="-1 1" gear="2"/>',
    "actearly": '<general joint="arm" ctrlrange="-1 1" dyntype="filter" dynprm="0.02" actearly="true"/>',
    "delay": '<motor joint="arm" ctrlrange="-1 1" delay="0.008" nsample="4"/>',
}
"""The servo of the scene replaced; named after what it has of `mjtDyn`, `mjtGain`, `mjtBias`, `mjtTrn`."""
EQUALITIES = {
    "mjEQ_CONNECT": '<connect body1="far" body2="arm" anchor="-0.2 0 0"/>',
    "mjEQ_WELD": '<weld body1="far" body2="arm" solref="0.05 1" torquescale="0.5"/>',
    "mjEQ_JOINT": '<joint joint1="far" joint2="arm" polycoef="0.1 0.5 0.3 0 0"/>',
    "mjEQ_TENDON": '<tendon tendon1="sum" polycoef="0.1 0 0 0 0"/>',
}


def kinds() -> Iterator[Case]:
    """Every kind of actuator and of equality, in place of the scene's."""
    for name, text in ACTUATORS.items():
        yield written(name, _SERVO, text)
    for name, text in EQUALITIES.items():
        yield written(name, _COUPLED, text)
    gravity = 'actuatorfrcrange="-3 3"'
    yield written("actuatorgravcomp", gravity, gravity + ' actuatorgravcomp="true"')
    yield written("actuator damping", 'group="1"/>', 'group="1" damping="0.1"/>')
    yield written("noslip_iterations", 'density="1.2"', 'density="1.2" noslip_iterations="5"')
    yield written("condim 1", 'mass="1" condim="3"', 'mass="1" condim="1" priority="1"')
    yield written("condim 4", 'mass="1" condim="3"', 'mass="1" condim="4"')
    yield written("condim 6", 'mass="1" condim="3"', 'mass="1" condim="6"')
    yield written("priority", 'mass="1" condim="3"', 'mass="1" condim="3" friction="0.1" priority="1"')
    yield written("solmix", 'mass="1" condim="3"', 'mass="1" condim="3" solmix="4" solref="0.05 1"')
    yield written("gap", 'mass="1" condim="3"', 'mass="1" condim="3" gap="0.01"')
    yield written("solref direct", 'mass="1" condim="3"', 'mass="1" condim="3" solref="-3000 -50"')
    yield written("solref trimmed", 'mass="1" condim="3"', 'mass="1" condim="3" solref="0.01 1"')
    yield written("adhesion", 'mass="1" condim="3"', 'mass="1" condim="3" adhesion="2"')
    yield written("surfacevel", 'mass="1" condim="3"', 'mass="1" condim="3" surfacevel="0.5 0 0 0 0 0"')
    yield written("fluidshape", 'mass="0.3"', 'mass="0.3" fluidshape="ellipsoid"')
    pair = '<contact><pair geom1="floor" geom2="ball" friction="0.2 0.2 0 0 0" solref="0.03 1"/></contact>'
    yield written("pair", "<equality>", pair + "<equality>")
    yield written(
        "exclude", "<equality>", '<contact><exclude body1="world" body2="ball"/></contact><equality>'
    )


SENSORS = {
    **{
        f"mjSENS_{name.upper()}": f'<{name} site="hand"/>'
        for name in ("accelerometer", "velocimeter", "gyro", "force", "torque", "magnetometer")
    },
    **{
        f"mjSENS_{kind.upper()}{what.upper()}": f'<{kind}{what} {kind}="{name}"/>'
        for kind, name in (("joint", "arm"), ("tendon", "sum"), ("actuator", "servo"))
        for what in ("pos", "vel")
    },
    **{
        f"mjSENS_FRAME{what.upper()}": f'<frame{what} objtype="site" objname="hand" {reference}/>'
        for whats, reference in (
            (("pos", "quat", "xaxis", "yaxis", "zaxis", "linvel", "angvel"), 'reftype="body" refname="far"'),
            (("linacc", "angacc"), ""),
        )
        for what in whats
    },
    **{
        f"mjSENS_{kind.upper()}LIMIT{what.upper()}": f'<{kind}limit{what} {kind}="{name}"/>'
        for kind, name in (("joint", "arm"), ("tendon", "sum"))
        for what in ("pos", "vel", "frc")
    },
    **{
        f"mjSENS_SUBTREE{what.upper()}": f'<subtree{what} body="ball"/>'
        for what in ("com", "linvel", "angmom")
    },
    "mjSENS_TOUCH": '<touch site="shell"/>',
    "mjSENS_RANGEFINDER": '<rangefinder site="up"/>',
    "mjSENS_ACTUATORFRC": '<actuatorfrc actuator="servo"/>',
    "mjSENS_JOINTACTFRC": '<jointactuatorfrc joint="arm"/>',
    "mjSENS_TENDONACTFRC": '<tendonactuatorfrc tendon="sum"/>',
    "mjSENS_BALLQUAT": '<ballquat joint="ball"/>',
    "mjSENS_BALLANGVEL": '<ballangvel joint="ball"/>',
    "mjSENS_INSIDESITE": '<insidesite site="shell" objtype="body" objname="ball"/>',
    "mjSENS_GEOMDIST": '<distance geom1="arm" geom2="bob" cutoff="5"/>',
    "mjSENS_GEOMNORMAL": '<normal geom1="arm" geom2="bob" cutoff="5"/>',
    "mjSENS_GEOMFROMTO": '<fromto geom1="arm" geom2="bob" cutoff="5"/>',
    "capsules": '<distance geom1="arm" geom2="far" cutoff="2"/>',
    "mjSENS_CONTACT": '<contact geom1="ball" geom2="floor" data="found force dist normal"/>',
    "mjSENS_E_POTENTIAL": "<e_potential/>",
    "mjSENS_E_KINETIC": "<e_kinetic/>",
}
_SENSED = (
    SCENE.replace(
        '<site name="hand" pos="0.2 0 0.1"/>',
        '<site name="hand" pos="0.2 0 0.1"/><site name="up" pos="0.1 0 0.2" euler="180 0 0"/>',
    )
    .replace('<body name="arm"', '<site name="shell" size="0.12"/><body name="arm"')
    .replace(
        "</worldbody>",
        """<body name="pendulum" pos="2 0 1"><joint name="ball" type="ball"/>
        <geom name="bob" size="0.05" pos="0 0 -0.2" mass="0.2"/></body></worldbody>""",
    )
)
"""The scene with a ball joint, and with sites to measure at."""
_AT_LIMIT = {
    "joint": _SENSED.replace('range="-5 5"', 'range="-0.5 0.5"'),
    "tendon": _SENSED.replace('range="-0.1 0.1" stiffness', 'range="-0.01 0.01" stiffness'),
}


def sensors() -> Iterator[Case]:
    """Every kind of sensor, alone."""
    for name, text in SENSORS.items():
        limited = next((kind for kind in _AT_LIMIT if f"<{kind}limit" in text), "")
        scene = _AT_LIMIT.get(limited, _SENSED)
        yield written(name, "</mujoco>", f"<sensor>{text}</sensor></mujoco>", scene)
