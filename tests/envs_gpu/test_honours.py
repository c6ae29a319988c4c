"""Every engine does as C MuJoCo does, or refuses the model: never otherwise in silence.

The cases come from MuJoCo's own enums and fields (`engine_walk`), so that a new MuJoCo brings new ones.
"""

from pathlib import Path

import mujoco
import numpy as np
import pytest
import torch

from envs_gpu.parity import FACTOR, FLOAT32_EPS, FLOOR, NUM_DRAWS
from envs_gpu.physics import BACKENDS, honours
from envs_gpu.physics._newton_import import restored
from envs_gpu.physics._solver import with_newton
from envs_gpu.physics.base import PhysicsOptions, UnsupportedModelError, scene_text
from tests import engine_walk

CPU = torch.device("cpu")
NUM_WORLDS, SUBSTEPS = 4, 5
WALK = [
    case
    for cases in (engine_walk.flags, engine_walk.choices, engine_walk.numbers, engine_walk.kinds)
    for case in cases()
]
QUICK = {
    "warp": {"mjENBL_OVERRIDE", "actuatorgroupdisable", "opt.wind", "mjEQ_CONNECT", "mjDYN_FILTER"},
    "newton": {"mjDSBL_GRAVITY", "mjENBL_OVERRIDE", "geom_margin", "solref trimmed"},
    "mjx-warp": {"mjENBL_OVERRIDE"},
    "mjx": {"mjENBL_OVERRIDE", "adhesion", "actearly", "fluidshape"},
}
"""Tried in every run; MJX compiles for half a minute what it does not refuse."""
KNOWN = {
    **{("mjEQ_CONNECT", engine): 20.0 for engine in ("warp", "newton", "mjx-warp")},
    **{("mjSENS_TENDONLIMITFRC", engine): 20.0 for engine in ("warp", "mjx-warp")},
    **{("mjSENS_TORQUE", engine): 2.0 for engine in ("warp", "mjx-warp")},
}
"""How many times as far as the rule allows an engine may be, where docs/engines.md says why."""


def walk():
    for engine in honours.ENGINES[1:]:
        for case in WALK:
            quick = case.name in QUICK[engine]
            yield pytest.param(
                case, engine, marks=() if quick else pytest.mark.slow, id=f"{case.name}-{engine}"
            )


def build(engine, model, mjcf=""):
    backend, _, impl = engine.partition("-")
    mjcf = scene_text(mujoco.MjSpec.from_string(mjcf)) if mjcf else ""
    return BACKENDS.get(backend)(model, NUM_WORLDS, CPU, PhysicsOptions(mjx_impl=impl or "jax", mjcf=mjcf))


def start(model):
    """Positions, velocities and controls `[N, ...]` that float32 holds, around the model's own."""
    generator = np.random.default_rng(0)
    qpos = np.tile(model.qpos0, (NUM_WORLDS, 1))
    for row in qpos:
        mujoco.mj_integratePos(model, row, generator.uniform(-0.05, 0.05, model.nv), 1)
    qvel = generator.uniform(-0.5, 0.5, (NUM_WORLDS, model.nv))
    ctrl = generator.uniform(-1.5, 1.5, (NUM_WORLDS, model.nu))
    return [torch.tensor(values).float().double() for values in (qpos, qvel, ctrl)]


def after(physics, qpos, qvel, ctrl):
    """`[N, nq + nv]` one control step after a restart."""
    physics.set_state(torch.ones(NUM_WORLDS, dtype=torch.bool), qpos, qvel)
    physics.step(ctrl, SUBSTEPS)
    return torch.cat([physics.state.qpos.double(), physics.state.qvel.double()], 1)


def allowed(referee, expected, inputs, engine, look=after):
    """The largest error by `parity`'s rule: so many times what a float32 bit in the start makes of C."""
    generator = torch.Generator().manual_seed(0)

    def nudged(values):
        noise = 2 * torch.rand(values.shape, generator=generator, dtype=torch.float64) - 1
        return values * (1 + FLOAT32_EPS * noise)

    qpos, qvel, ctrl = inputs
    group = [look(referee, nudged(qpos), nudged(qvel), ctrl) for _ in range(NUM_DRAWS)]
    factor = FACTOR["warp" if engine == "mjx-warp" else engine]
    return FLOOR + factor * max((end - expected).abs().max().item() for end in group)


@pytest.mark.parametrize(("case", "engine"), walk())
def test_an_engine_does_as_c_or_refuses(case, engine):
    inputs = start(case.model)
    try:
        referee = build("mujoco", with_newton(case.model))
    except UnsupportedModelError:  # then nobody can run it
        with pytest.raises(UnsupportedModelError):
            build(engine, case.model, case.mjcf)
        return
    expected = after(referee, *inputs)
    try:
        physics = build(engine, case.model, case.mjcf)
    except UnsupportedModelError as error:
        refusal = str(error)
    else:
        refusal = ""
    if refusal:
        assert "\n" not in refusal
        assert "env.backend=" in refusal or "env.mjx_impl=" in refusal
        return
    error = (after(physics, *inputs) - expected).abs().max().item()
    assert error <= KNOWN.get((case.name, engine), 1.0) * allowed(referee, expected, inputs, engine)


def read(physics, qpos, qvel, ctrl):
    """`[N, ns]` sensors one control step after a restart."""
    after(physics, qpos, qvel, ctrl)
    return physics.state.sensordata.double().clone()


def sensing():
    for engine in ("warp", "mjx-warp", "mjx"):  # newton senses with warp's
        for case in engine_walk.sensors():
            quick = engine == "warp" and case.name in ("mjSENS_ACCELEROMETER", "mjSENS_CONTACT")
            yield pytest.param(
                case, engine, marks=() if quick else pytest.mark.slow, id=f"{case.name}-{engine}"
            )


@pytest.mark.parametrize(("case", "engine"), sensing())
def test_a_sensor_reads_as_in_c(case, engine):
    """Readings of the state that the control step ends in, or the model is refused."""
    inputs = start(case.model)
    try:
        physics = build(engine, case.model)
    except UnsupportedModelError:
        return  # how it is said, `test_an_engine_does_as_c_or_refuses` looks at
    referee = build("mujoco", case.model)
    expected = read(referee, *inputs)
    assert expected.any(), "nothing to read"
    error = (read(physics, *inputs) - expected).abs().max().item()
    size = max(1.0, expected.abs().max().item())  # float32 rounds large readings more
    rounding = allowed(referee, expected, inputs, engine, read) + FLOOR * (size - 1.0)
    assert error <= KNOWN.get((case.name, engine), 1.0) * rounding


ELSEWHERE = {
    *("mjGAIN_MUSCLE", "mjBIAS_MUSCLE"),  # the case mjDYN_MUSCLE
    *("mjGAIN_DCMOTOR", "mjBIAS_DCMOTOR", "mjGAIN_PID"),  # mjDYN_DCMOTOR, mjDYN_PID
    *("mjGAIN_SO3", "mjBIAS_SO3"),  # several controls, which `honours` judges
}
NO_SENSORS = {
    *("mjSENS_CAMPROJECTION", "mjSENS_TACTILE", "mjSENS_PLUGIN", "mjSENS_USER"),
    "mjSENS_CLOCK",  # `state.time`
}
"""Sensors that need more than the small model has."""


@pytest.mark.parametrize(
    ("enum", "covered"),
    [
        (mujoco.mjtDyn, {*engine_walk.ACTUATORS, "mjDYN_USER"}),
        (mujoco.mjtGain, {*engine_walk.ACTUATORS, *ELSEWHERE, "mjGAIN_USER"}),
        (mujoco.mjtBias, {*engine_walk.ACTUATORS, *ELSEWHERE, "mjBIAS_NONE", "mjBIAS_USER"}),
        (mujoco.mjtSensor, {*engine_walk.SENSORS, *NO_SENSORS}),
        (mujoco.mjtTrn, {*engine_walk.ACTUATORS, "mjTRN_JOINT", "mjTRN_UNDEFINED", "mjTRN_SO3"}),
        (mujoco.mjtEq, {*engine_walk.EQUALITIES, "mjEQ_FLEX", "mjEQ_FLEXVERT", "mjEQ_FLEXSTRAIN"}),
    ],
)
def test_a_kind_that_mujoco_adds_is_noticed(enum, covered):
    """Kinds that are left out need callbacks or flexes, or are the scene's own."""
    new = {name for name in enum.__members__ if name not in covered and "DISTANCE" not in name}
    assert not new


@pytest.mark.parametrize("name", ["mjDSBL_GRAVITY", "actuatorgroupdisable", "opt.wind", "mjEQ_CONNECT"])
def test_a_case_matters(name):
    """The walk would see an engine that ignores the thing: C moves otherwise with it."""
    case = next(case for case in WALK if case.name == name)
    inputs = start(case.base)
    with_it, without = (after(build("mujoco", model), *inputs) for model in (case.model, case.base))
    assert (with_it - without).abs().max() > 1e-5


def test_the_documented_table_is_the_one_that_holds():
    assert honours.table() in (Path(__file__).parents[2] / "docs" / "engines.md").read_text()


PLUGIN = """
<mujoco><extension><plugin plugin="mujoco.pid"><instance name="pid"><config key="kp" value="4"/></instance>
</plugin></extension><worldbody><body><joint name="j" axis="0 1 0"/><geom size="0.1"/></body></worldbody>
<actuator><plugin joint="j" plugin="mujoco.pid" instance="pid" ctrlrange="-1 1"/></actuator></mujoco>"""
WHEEL_ON_WEDGE = """
<mujoco><asset><mesh name="wedge" vertex="0 0 0  .2 0 0  0 .2 0  .2 .2 0  0 0 .1  0 .2 .1"/></asset>
<worldbody><geom type="mesh" mesh="wedge"/><body pos="0 0 0.3"><freejoint/>
<geom type="cylinder" size="0.05 0.02"/></body></worldbody></mujoco>"""

CAPSULE_ON_HILL = """
<mujoco><asset><hfield name="hill" nrow="3" ncol="3" size="1 1 .1 .1" elevation="0 0 0 0 1 0 0 0 0"/></asset>
<worldbody><geom type="hfield" hfield="hill"/><body pos="0 0 0.3"><freejoint/>
<geom type="capsule" size="0.05 0.1"/></body></worldbody></mujoco>"""
CLOTH = """
<mujoco><worldbody><flexcomp name="cloth" type="grid" count="3 3 1" spacing=".1 .1 .1" dim="2" radius=".01"/>
<body><joint/><geom size=".1"/></body></worldbody></mujoco>"""

WHEELS_BY_LIBCCD, WHEELS_AT_A_POINT = (
    WHEEL_ON_WEDGE.replace("<asset>", f'<option><flag {flag}="disable"/></option><asset>')
    for flag in ("nativeccd", "multiccd")
)


@pytest.mark.parametrize(
    ("mjcf", "engine", "advice"),
    [
        (PLUGIN, "warp", "set env.backend=mujoco"),
        (PLUGIN, "newton", "set env.backend=mujoco"),
        (WHEELS_BY_LIBCCD, "warp", "set env.backend=mujoco"),
        (WHEELS_AT_A_POINT, "mjx", "set env.mjx_impl=warp"),
        (WHEEL_ON_WEDGE, "mjx", "set env.mjx_impl=warp"),
        (CAPSULE_ON_HILL, "mjx", "set env.mjx_impl=warp"),
        (CLOTH, "newton", "set env.backend=warp"),
    ],
)
def test_a_refusal_names_the_nearest_engine_that_can(mjcf, engine, advice):
    model = mujoco.MjModel.from_xml_string(mjcf)
    with pytest.raises(UnsupportedModelError, match="cannot simulate") as refusal:
        build(engine, model, mjcf)
    assert str(refusal.value).endswith(advice)


def test_a_refusal_of_mjx_names_the_geoms_in_words():
    """MJX gives two numbers in a tuple, which print as such."""
    with pytest.raises(UnsupportedModelError, match="not found for geom types cylinder and mesh; set env"):
        build("mjx", mujoco.MjModel.from_xml_string(WHEEL_ON_WEDGE), WHEEL_ON_WEDGE)


def test_a_scene_that_newton_cannot_read_names_another_engine(monkeypatch):
    def failing(builder, mjcf, **options):
        raise RuntimeError("no such\nthing")

    monkeypatch.setattr("newton.ModelBuilder.add_mjcf", failing)
    model = mujoco.MjModel.from_xml_string(REPLICATED)
    with pytest.raises(UnsupportedModelError, match=r"newton .*says: no such thing; set env\.backend=warp$"):
        build("newton", model, REPLICATED)


def test_newton_tells_geoms_apart_whose_names_contain_each_other():
    """`a` is a part of `ba`: Newton's `ba`, where the scene has `a`, is another geom."""
    xml = '<mujoco><worldbody><body><freejoint/><geom name="NAME" size=".1"/></body></worldbody></mujoco>'
    names = ("a", "m/worldbody/body_1/ba_0", "m/worldbody/body_1/a_0")
    scene, imported, same = (mujoco.MjModel.from_xml_string(xml.replace("NAME", name)) for name in names)
    with pytest.raises(UnsupportedModelError, match="has a geom 'm/worldbody/body_1/ba_0', which the scene"):
        restored(scene, imported)
    assert restored(scene, same)[1].tolist() == [0]


BOX_ON_BOX = """
<mujoco><option timestep="0.002">{}</option><worldbody><geom type="box" size=".1 .08 .06"/>
<body pos="0 0 .125"><freejoint/><geom type="box" size=".1 .08 .06"/></body></worldbody></mujoco>"""


@pytest.mark.parametrize("flag", ["nativeccd", "multiccd"])
def test_a_flag_of_convex_collisions_refuses_no_model_without_them(flag):
    mjcf = BOX_ON_BOX.format(f'<flag {flag}="disable"/>')
    for engine in honours.ENGINES:
        honours.check(mujoco.MjModel.from_xml_string(mjcf), engine)


@pytest.mark.parametrize("engine", ["warp", pytest.param("mjx-warp", marks=pytest.mark.slow)])
def test_a_box_on_a_box_moves_as_in_c(engine):
    """MuJoCo Warp's own search for boxes is up to 1 rad/s away after a timestep."""
    model = mujoco.MjModel.from_xml_string(BOX_ON_BOX.format(""))
    qpos, qvel, ctrl = start(model)
    generator = np.random.default_rng(1)
    referee, physics = build("mujoco", model), build(engine, model)
    for _ in range(40):
        turn, tilt = generator.uniform(-0.4, 0.4, (2, NUM_WORLDS))
        qpos[:, 3:] = torch.tensor(np.stack([np.ones(NUM_WORLDS), tilt, turn * tilt, turn], 1)).float()
        qpos[:, 3:] /= qpos[:, 3:].norm(dim=1, keepdim=True)
        inputs = (qpos.float().double(), qvel, ctrl)
        expected = after(referee, *inputs)
        error = (after(physics, *inputs) - expected).abs().max()
        assert error <= allowed(referee, expected, inputs, engine)


def test_sleep_is_off_on_every_engine():
    """`mj_step` would let a body lie in the air; which body sleeps is not part of a world's state."""
    mjcf = """<mujoco><option><flag sleep="enable"/></option><worldbody><body pos="0 0 1" sleep="init">
        <freejoint/><geom size="0.1"/></body></worldbody></mujoco>"""
    model = mujoco.MjModel.from_xml_string(mjcf)
    for engine in ("mujoco", "warp", "newton"):
        fallen = after(build(engine, model, mjcf), *start(model))
        assert (fallen[:, 7 + 2] < start(model)[1][:, 2]).all(), engine


REPLICATED = """
<mujoco><option timestep="0.004"/><worldbody><replicate count="3" offset="0 .5 0" sep="_">
<body name="leg" pos="0 0 1"><joint name="hip" axis="0 1 0"/><geom type="capsule" fromto="0 0 0 0 0 -.4"
size=".03" mass="1"/></body></replicate></worldbody><actuator><motor joint="hip_0" gear="3"/>
<motor joint="hip_1" gear="3"/><motor joint="hip_2" gear="3"/></actuator></mujoco>"""


def test_newton_has_replicated_joints_in_the_order_of_the_scene():
    model = mujoco.MjModel.from_xml_string(REPLICATED)
    inputs = [*start(model)[:2], torch.tensor([[1.0, 0.0, -1.0]]).double().repeat(NUM_WORLDS, 1)]
    referee = build("mujoco", model)
    expected = after(referee, *inputs)
    error = (after(build("newton", model, REPLICATED), *inputs) - expected).abs().max()
    assert error <= allowed(referee, expected, inputs, "newton")


LOOP = """
<mujoco><option timestep="0.002"/><worldbody>
<body name="a" pos="0 0 1"><joint axis="0 1 0"/><geom type="capsule" fromto="0 0 0 .3 0 0" size=".02"/>
 <body name="b" pos=".3 0 0"><joint type="ball"/><geom type="capsule" fromto="0 0 0 0 .3 0" size=".02"/>
 </body></body>
<body name="c" pos=".3 .3 1"><freejoint/><geom type="box" size=".05 .04 .03"/></body></worldbody>
<equality>{}</equality></mujoco>"""
CLOSED = ['<connect body1="b" body2="c" anchor="0 .3 0"/>', '<weld body1="b" body2="c" torquescale=".3"/>']


SLOWLY = pytest.mark.slow


@pytest.mark.parametrize(
    ("equality", "engine"),
    [
        *((CLOSED[0], "warp"), (CLOSED[1], "newton")),
        *(pytest.param(CLOSED[0], engine, marks=SLOWLY) for engine in ("newton", "mjx")),
        *(pytest.param(CLOSED[1], engine, marks=SLOWLY) for engine in ("warp", "mjx")),
    ],
)
def test_a_closed_loop_moves_as_in_c(equality, engine):
    """The acceleration that keeps a turning loop closed; without it an engine is 1e-2 m/s off."""
    mjcf = LOOP.format(equality)
    model = mujoco.MjModel.from_xml_string(mjcf)
    qpos, qvel, ctrl = start(model)
    inputs = (qpos, 5 * qvel, ctrl)
    referee = build("mujoco", model)
    expected = after(referee, *inputs)
    error = (after(build(engine, model, mjcf), *inputs) - expected).abs().max()
    assert error <= allowed(referee, expected, inputs, engine)
