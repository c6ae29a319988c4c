"""A robot gets a floor where it would fall for ever, and nowhere else; fallen is low over the ground."""

import mujoco
import numpy as np
import pytest
import torch

from envs_gpu.make import make_env
from envs_gpu.scene.floor import lowest_point, needs_floor
from envs_gpu.scene.keyframe import data_at
from tests.mjcf import tripod

CPU = torch.device("cpu")
NO_CONTACTS = '<geom contype="0" conaffinity="0" margin="0.1" rgba="1 0 0 1"/>'
FAR_BELOW = '<geom name="slab" type="box" size="5 5 0.1" pos="0 0 -0.6"/>'
BOX_CALLED_FLOOR = '<geom name="floor" type="box" size="5 5 0.1" pos="0 0 -0.1"/>'
WALL = '<geom name="wall" type="plane" size="1 1 0.1" pos="1 0 0" zaxis="-1 0 0"/>'
HELD = """<equality><weld body1="base" body2="hand"/></equality>"""
HAND = '<body name="hand" mocap="true" pos="0 0 1"><geom size="0.01" contype="0" conaffinity="0"/></body>'
SEESAW = """<body pos="0 0 -0.05"><joint axis="1 0 0" stiffness="1000" damping="10"/>
  <geom type="box" size="2 2 0.05" mass="50"/></body>"""


def make(tmp_path, mjcf, num_envs=1, **more):
    path = tmp_path / "robot.xml"
    path.write_text(mjcf)
    return make_env("hold_pose", num_envs=num_envs, device=CPU, model=str(path), **more)


def planes(model):
    return np.flatnonzero(model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE)


@pytest.mark.parametrize(
    ("robot", "floors"),
    [
        (tripod(), 1),
        (tripod(WALL), 1),
        (tripod(height=0.0), 1),
        (tripod(default=NO_CONTACTS), 1),
        (tripod('<geom type="plane" size="0 0 1"/>'), 0),
        (tripod('<geom type="plane" size="0.01 0.01 1" pos="3 0 0"/>'), 0),  # a plane has no edge
        (tripod(BOX_CALLED_FLOOR), 0),
        (tripod(FAR_BELOW, height=-0.21), 0),
        (tripod(SEESAW), 0),
        (tripod(option='gravity="0 0 0"'), 0),
        (tripod(gravcomp=1).replace('<body pos="', '<body gravcomp="1" pos="'), 0),
        (tripod(HAND, extra=HELD), 0),
        (tripod(free='<joint type="hinge" axis="0 0 1"/>'), 0),
    ],
    ids=(
        *("nothing", "wall", "origin", "default_class", "plane", "plane_beside", "box", "slab", "seesaw"),
        *("no_gravity", "gravcomp", "held", "fixed"),
    ),
)
def test_a_floor_is_added_where_something_falls_with_nothing_below_it(tmp_path, robot, floors):
    before = len(planes(mujoco.MjModel.from_xml_string(robot)))
    model = make(tmp_path, robot).physics.model
    assert len(planes(model)) == before + floors


@pytest.mark.parametrize(
    ("robot", "height"),
    [
        (tripod(), 0.29),
        (tripod(height=0.0), 0.0),
        (tripod(WALL, 0.5), 0.5),
        (tripod(default=NO_CONTACTS), 0.29),
    ],
    ids=("standing", "origin", "wall", "default_class"),
)
def test_an_added_floor_carries_the_robot_where_it_starts(tmp_path, robot, height):
    """Two seconds in C MuJoCo: it neither falls through nor is pushed out."""
    model = make(tmp_path, robot).physics.model
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    assert min(data.contact.dist, default=0.0) > -1e-6
    while data.time < 2:
        mujoco.mj_step(model, data)
    assert data.body("base").xpos[2] == pytest.approx(height, abs=0.005)


def test_an_added_floor_has_a_name_of_its_own(tmp_path):
    named = tripod('<geom name="floor" type="box" size="0.1 0.1 0.1" pos="3 0 0"/>')
    model = make(tmp_path, named).physics.model
    assert model.geom(int(planes(model)[0])).name == "floor_2"


def test_an_added_floor_follows_gravity(tmp_path):
    """Where gravity points along -y, so does the floor's back."""
    model = make(tmp_path, tripod(option='gravity="0 -9.81 0"')).physics.model
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    (floor,) = planes(model)
    np.testing.assert_allclose(data.geom_xmat[floor].reshape(3, 3)[:, 2], (0, 1, 0), atol=1e-12)
    assert data.geom_xpos[floor] @ (0, 1, 0) == pytest.approx(-0.12, abs=1e-9)  # the legs' lowest side


SHAPES = {
    "sphere": 'type="sphere" size="0.1"',
    "capsule": 'type="capsule" size="0.05 0.2"',
    "cylinder": 'type="cylinder" size="0.1 0.2"',
    "ellipsoid": 'type="ellipsoid" size="0.1 0.2 0.3"',
    "box": 'type="box" size="0.1 0.2 0.3"',
    "mesh": 'type="mesh" mesh="wedge"',
}
WEDGE = '<asset><mesh name="wedge" vertex="0 0 0  0.3 0 0  0 0.2 0  0 0 0.1"/></asset>'


@pytest.mark.parametrize("shape", SHAPES)
def test_the_lowest_point_of_a_geom_is_mujocos(shape):
    """Turned at random, its distance from a far plane is what MuJoCo's own distance function says."""
    rng = np.random.default_rng(0)
    for _ in range(5):
        quat = " ".join(map(str, rng.normal(size=4)))
        model = mujoco.MjModel.from_xml_string(f"""<mujoco>{WEDGE}<worldbody>
          <geom name="ground" type="plane" size="0 0 1" pos="0 0 -1"/>
          <body pos="0.1 0.2 0.5" quat="{quat}"><freejoint/><geom name="it" {SHAPES[shape]} mass="1"/></body>
        </worldbody></mujoco>""")
        data = data_at(model, None)
        distance = mujoco.mj_geomDistance(model, data, model.geom("ground").id, model.geom("it").id, 9, None)
        assert lowest_point(model, data) == pytest.approx(distance - 1, abs=1e-6)


def test_what_is_transparent_carries_too():
    robot = tripod('<geom type="box" size="5 5 0.1" pos="0 0 -0.1" rgba="0 0 0 0"/>')
    model = mujoco.MjModel.from_xml_string(robot)
    assert not needs_floor(model, data_at(model, None))


def fallen_at(env, drop):
    state = env.physics.state
    qpos = state.qpos.clone()
    qpos[:] = torch.tensor(env.physics.model.qpos0)
    qpos[:, 2] -= drop
    return env.task.outcome(state._replace(qpos=qpos), env._episode(), torch.zeros(1, 3)).terminated.item()


def test_fallen_means_low_over_the_ground_and_not_over_the_origin(tmp_path):
    """The base is 0.29 m over a ground at -0.28 m: a centimetre of sag is no fall, 0.2 m are one."""
    env = make(tmp_path, tripod('<geom type="plane" size="0 0 1" pos="0 0 -0.28"/>', height=0.01))
    assert not fallen_at(env, 0.01)
    assert fallen_at(env, 0.2)


@pytest.mark.parametrize(
    "robot",
    [tripod(option='gravity="0 0 0"'), tripod(HAND, extra=HELD)],
    ids=("no_gravity", "held"),
)
def test_what_does_not_fall_has_not_fallen(tmp_path, robot):
    assert not fallen_at(make(tmp_path, robot), 5.0)


def test_a_body_that_would_sleep_is_awake(tmp_path):
    """In the worlds, and where C MuJoCo steps the scene by itself, as a replay does."""
    box = '<body name="box" pos="0 2 1" sleep="init"><freejoint/><geom type="box" size="0.1 0.1 0.1"/></body>'
    robot = tripod('<geom type="plane" size="0 0 1"/>' + box)
    robot = robot.replace("<option", '<option><flag sleep="enable"/></option><option')
    env = make(tmp_path, robot)
    assert not env.step(torch.zeros(1, 3)).broken.any()
    model = env.physics.model
    joint = model.body("box").jntadr[0]
    assert env.physics.state.qpos[0, model.jnt_qposadr[joint] + 2] < 1 - 1e-4
    data = mujoco.MjData(model)
    mujoco.mj_step(model, data, 10)
    assert data.body("box").xpos[2] < 1 - 1e-4
