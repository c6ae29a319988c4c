"""A robot gets a floor where it would fall for ever, and nowhere else; fallen is low over the ground."""

import mujoco
import numpy as np
import pytest
import torch

from envs_gpu.make import make_env
from envs_gpu.scene.falling import falling_roots
from envs_gpu.scene.floor import lowest_point
from envs_gpu.scene.ground import ground_below
from envs_gpu.scene.keyframe import data_at
from envs_gpu.scene.touch import touches_floor, touches_root
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
GROUND = '<geom name="ground" type="plane" size="0 0 1"/>'
OTHER_BITS = GROUND.replace("/>", ' contype="2" conaffinity="2"/>')
ALMOST_WALL = '<geom name="wall" type="plane" size="1 1 0.1" pos="-1 0 0" zaxis="1 0 1e-5"/>'
STEEP_BOX = '<geom name="wall" type="box" size="3 3 0.1" pos="0 0 -2" euler="0 {angle} 0"/>'
BODIES = ("base", "leg_a", "leg_b", "leg_c")
NO_BITS = '<geom contype="0" conaffinity="0"/>'
LIFT = '<motor joint="z" ctrlrange="-100 100"/>'
PLANAR = """<joint name="x" type="slide" axis="1 0 0"/><joint name="z" type="slide" axis="0 0 1" {z}/>
  <joint name="pitch" axis="0 1 0"/>"""
CLOTH = """<flexcomp name="cloth" type="grid" count="3 3 1" spacing="0.1 0.1 0.1" pos="0 1 -0.4" radius="0.01"
  dim="2" mass="0.1"><edge equality="true"/></flexcomp>"""


def without_contacts(robot):
    """The robot with legs whose own bits are zero."""
    return robot.replace('contype="1" conaffinity="1"', 'contype="0" conaffinity="0"')


def by_pairs(robot):
    """The robot with a name for its trunk, which touches the ground through a pair alone."""
    robot = robot.replace('<geom class="foot" type="box"', '<geom name="trunk" class="foot" type="box"')
    robot = robot.replace('name="ground"', 'name="ground" contype="0" conaffinity="0"')
    return robot.replace("</mujoco>", '<contact><pair geom1="trunk" geom2="ground"/></contact></mujoco>')


def apart_from_world(robot):
    """The robot with every body named, and excluded from the world's."""
    for name in ("a", "b", "c"):
        robot = robot.replace(f'0"><joint name="{name}"', f'0" name="leg_{name}"><joint name="{name}"')
    excludes = "".join(f'<exclude body1="world" body2="{body}"/>' for body in BODIES)
    return robot.replace("</mujoco>", f"<contact>{excludes}</contact></mujoco>")


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
        (tripod(OTHER_BITS), 1),
        (apart_from_world(tripod(GROUND)), 0),
        (without_contacts(tripod()), 0),
        (tripod(option="><flag contact='disable'/></option><option"), 0),
        (by_pairs(without_contacts(tripod(GROUND))), 0),
        (tripod(ALMOST_WALL), 1),
        (tripod(STEEP_BOX.format(angle=50)), 0),
        (tripod(STEEP_BOX.format(angle=70)), 1),
        (tripod(GROUND, height=-0.5), 0),
        (tripod(GROUND, height=4.5), 0),
        (tripod(GROUND, height=30), 1),
        (tripod(free=PLANAR.format(z="")), 1),
        (tripod(GROUND, free=PLANAR.format(z="")), 0),
        (tripod(free=PLANAR.format(z='stiffness="10"')), 0),
        (tripod(free=PLANAR.format(z='range="-1 1"')), 0),
        (tripod(free=PLANAR.format(z='frictionloss="100"')), 0),
        (tripod(free=PLANAR.format(z="")).replace("<actuator>", f"<actuator>{LIFT}"), 0),
        (tripod(free='<joint type="slide" axis="1 0 0"/>'), 0),
    ],
    ids=(
        *("nothing", "wall", "origin", "default_class", "plane", "plane_beside", "box", "slab", "seesaw"),
        *("no_gravity", "gravcomp", "held", "fixed", "other_bits", "excluded", "no_bits", "contact_off"),
        *(
            "pairs",
            "almost_wall",
            "ramp",
            "steep",
            "below_plane",
            "high",
            "far_too_high",
            "planar",
            "planar_on_ground",
            "spring",
        ),
        *("limited", "friction", "actuated", "rail"),
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
        (tripod(OTHER_BITS), 0.29),
        (tripod(ALMOST_WALL), 0.29),
        (tripod(free=PLANAR.format(z="")), 0.29),
        (tripod(option='o_margin="0.01"><flag override="enable"/></option><option'), 0.29),
    ],
    ids=(
        *("standing", "origin", "wall", "default_class", "other_bits", "almost_wall", "planar"),
        "override",
    ),
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
    assert ground_below(model, data_at(model, None), model.body("base").id)


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


def tangle(seed):
    """Spheres in one place, five of the world and three of a robot, with random rules of contact."""
    rng = np.random.default_rng(seed)

    def sphere(name):
        bits, affinity = rng.integers(0, 4, 2) * rng.integers(0, 2, 2)
        return f'<geom name="{name}" size="0.1" contype="{bits}" conaffinity="{affinity}"/>'

    world, robot = [f"w{i}" for i in range(5)], [f"r{i}" for i in range(3)]
    rules = "".join(
        f'<pair geom1="{rng.choice(world)}" geom2="{name}"/>' for name in robot if rng.random() < 0.3
    )
    bodies = [("world", "a"), ("world", "b"), ("a", "shelf"), ("shelf", "b")]
    rules += "".join(f'<exclude body1="{a}" body2="{b}"/>' for a, b in bodies if rng.random() < 0.3)
    return f"""<mujoco><worldbody>{"".join(map(sphere, world[:3]))}
      <body name="shelf">{"".join(map(sphere, world[3:]))}</body>
      <body name="a"><freejoint/>{sphere("r0")}
        <body name="b" pos="0 0 0.01"><joint/>{sphere("r1")}{sphere("r2")}</body></body>
      </worldbody><contact>{rules}</contact></mujoco>"""


def touched(model, root):
    """The geoms of the world that MuJoCo finds in contact with the robot, and those of the robot."""
    pairs = data_at(model, None).contact.geom
    roots = model.body_rootid[model.geom_bodyid]
    mixed = pairs[(roots[pairs] == root).sum(1) == 1]
    return {geom for geom in mixed.ravel().tolist() if roots[geom] != root}, mixed


def test_what_can_touch_a_robot_is_what_mujoco_finds_in_contact():
    """By contype and conaffinity, `<pair>` and `<exclude>`, drawn at random 40 times."""
    sizes = set()
    for seed in range(40):
        model = mujoco.MjModel.from_xml_string(tangle(seed))
        root = model.body("a").id
        world = model.body_rootid[model.geom_bodyid] != root
        found = touched(model, root)[0]
        assert {*np.flatnonzero(touches_root(model, root) & world).tolist()} == found, seed
        sizes.add(len(found))
    assert {0, 1, 2, 3} <= sizes


def test_what_can_touch_a_floor_is_what_mujoco_finds_in_contact_with_one():
    """Among the robot's geoms, against a geom with all bits in the world."""
    sizes, sphere = set(), '<geom name="all" size="0.1" contype="3" conaffinity="3"/>'
    for seed in range(40):
        model = mujoco.MjModel.from_xml_string(tangle(seed).replace("<worldbody>", f"<worldbody>{sphere}"))
        root, floor = model.body("a").id, model.geom("all").id
        contacts = touched(model, root)[1]
        found = {*contacts[(contacts == floor).any(1)].ravel().tolist()} - {floor}
        own = model.body_rootid[model.geom_bodyid] == root
        assert {*np.flatnonzero(touches_floor(model)[0] & own).tolist()} == found, seed
        sizes.add(len(found))
    assert {0, 1, 2} <= sizes


@pytest.mark.parametrize(
    "robot",
    [
        without_contacts(tripod()),
        apart_from_world(tripod(GROUND)),
        tripod(option="><flag contact='disable'/></option><option"),
    ],
    ids=("no_bits", "excluded", "contact_off"),
)
def test_a_robot_that_no_floor_can_carry_is_told(tmp_path, robot):
    (note,) = make(tmp_path, robot).task.notes
    assert note.startswith("no floor was added for body 'base', which will fall")


def test_an_added_floor_is_below_the_vertices_of_flexes(tmp_path):
    """A cloth hangs lower than the robot: its lowest vertex, less its radius, is where the floor is."""
    model = make(tmp_path, tripod(CLOTH)).physics.model
    (floor,) = planes(model)
    assert model.geom_pos[floor, 2] == pytest.approx(-0.41, abs=1e-9)
    assert min(data_at(model, None).contact.dist, default=0.0) > -1e-6


@pytest.mark.parametrize("height", [0.17, -0.5])
def test_a_start_inside_of_the_ground_is_told_with_its_depth(tmp_path, height):
    env = make(tmp_path, tripod(GROUND, height=height))
    depth_m = -min(data_at(env.physics.model, None).contact.dist)
    assert depth_m == pytest.approx(0.27 - height)
    (note,) = (note for note in env.task.notes if "inside of" in note)
    assert "geom 'ground'" in note
    assert f"{depth_m:.2g} m" in note


@pytest.mark.parametrize(
    ("robot", "note"),
    [
        (tripod(GROUND, height=0.27), "stands on geom 'ground'"),
        (tripod(GROUND, height=0.5), "stands on geom 'ground', which is 0.23 m below it at the start"),
        (tripod(GROUND.replace('name="ground"', ""), height=0.27), "stands on geom number 0"),
        (tripod(), "a floor was added below the robot, at a height of 0.02 m"),
    ],
    ids=("named", "lower", "unnamed", "added"),
)
def test_what_a_robot_stands_on_is_told(tmp_path, robot, note):
    assert make(tmp_path, robot).task.notes == (note,)


def test_a_planar_base_starts_no_lower_than_its_pose(tmp_path):
    """Noise on the vertical slide would put the feet into the ground."""
    env = make(tmp_path, tripod(free=PLANAR.format(z="")), num_envs=64)
    heights = env.physics.state.qpos[:, 1]
    assert heights.min() >= 0
    assert heights.max() > 0.01


@pytest.mark.parametrize(("robot", "falls"), [("hopper", True), ("half_cheetah", True), ("reacher", False)])
def test_planar_robots_of_gymnasium_fall_onto_their_own_floor(robot, falls):
    from gymnasium.envs import mujoco as family

    model = mujoco.MjModel.from_xml_path(f"{family.__path__[0]}/assets/{robot}.xml")
    data = data_at(model, None)
    roots = falling_roots(model, data)
    assert bool(roots) == falls
    grounds = [ground_below(model, data, root) for root in roots]
    assert [model.geom(ground.geom).name for ground in grounds if ground] == ["floor"] * falls
