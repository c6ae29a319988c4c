"""Any robot can be named, from a file or a collection, and its controls get limits from what bounds them."""

from __future__ import annotations

import math
import re
import subprocess
from pathlib import Path
from xml.sax.saxutils import quoteattr

import mujoco
import numpy as np
import pytest
import torch

from envs_gpu.errors import ModelError, SettingError
from envs_gpu.make import make_env
from envs_gpu.models import compile_model
from envs_gpu.user_model import LoadedModel, UserModel
from pi_incubator.config import load_config

CPU = torch.device("cpu")
ROBOT = """<mujoco>
  <compiler angle="radian"/>
  <worldbody>
    <geom type="plane" size="0 0 1" pos="0 0 -2"/>
    <body>
      <joint name="j" axis="0 1 0" range="-1 2" damping="1" {joint}/><geom size="0.1" pos="0.3 0 0"/>
      <body pos="0.5 0 0"><joint name="wrist" type="ball" damping="1"/><geom size="0.1" pos="0.1 0 0"/>
        <site name="s"/>
      </body>
    </body>
  </worldbody>
  <tendon><fixed name="t" range="-3 4" limited="true"><joint joint="j" coef="2"/></fixed></tendon>
  <actuator>{actuator}</actuator>
</mujoco>"""
TORQUE = 'actuatorfrcrange="-6 6"'

# actuator, attributes of its joint, the limits, and what the reason says
CASES = {
    "position": ('<position name="a" joint="j"/>', "", [(-1, 2)], "range of joint 'j'"),
    "position with gear": ('<position name="a" joint="j" gear="-2"/>', "", [(-4, 2)], "range of joint 'j'"),
    "position on a tendon": ('<position name="a" tendon="t"/>', "", [(-3, 4)], "range of tendon 't'"),
    "servo with an offset": (
        '<general name="a" joint="j" gainprm="2" biastype="affine" biasprm="1 -4 0"/>',
        "",
        [(-2.5, 3.5)],
        "range of joint 'j'",
    ),
    "motor with forcerange": ('<motor name="a" joint="j" forcerange="-3 5"/>', "", [(-3, 5)], "forcerange"),
    "motor with a gain": (
        '<general name="a" joint="j" gainprm="10" forcerange="-3 5"/>',
        "",
        [(-0.3, 0.5)],
        "forcerange",
    ),
    "motor of a joint": (
        '<motor name="a" joint="j" gear="3"/>',
        TORQUE,
        [(-2, 2)],
        "actuatorfrcrange of joint",
    ),
    "motor with both": (
        '<motor name="a" joint="j" gear="3" forcerange="-1 1"/>',
        TORQUE,
        [(-1, 1)],
        "forcerange",
    ),
    "velocity": ('<velocity name="a" joint="j" kv="2"/>', TORQUE, [(-3, 3)], "at standstill"),
    "intvelocity": (
        '<intvelocity name="a" joint="j" kp="3" actrange="-1 3"/>',
        "",
        [(-4, 4)],
        "actrange, crossed in one second",
    ),
    "intvelocity of a joint": (
        '<intvelocity name="a" joint="j" kp="3"/>',
        "",
        [(-3, 3)],
        "crossed in one second",
    ),
    "muscle": ('<muscle name="a" joint="j"/>', "", [(0, 1)], "muscle"),
    "cylinder": ('<cylinder name="a" joint="j" area="2" forcerange="-4 4"/>', "", [(-2, 2)], "forcerange"),
    "range turned off": (
        '<motor name="a" joint="j" ctrlrange="-7 7" ctrllimited="false"/>',
        "",
        [(-7, 7)],
        "ctrllimited turns off",
    ),
    "orientation": (
        '<orientation name="a" joint="wrist" kp="1"/>',
        "",
        [(-math.pi, math.pi)] * 3,
        "half a turn",
    ),
    "pid": ('<pid name="a" joint="j" kp="1" kv="1"/>', "", [(-1, 2), (-3, 3)], "range of joint 'j'"),
    "dcmotor": (
        '<dcmotor name="a" joint="j" motorconst="0.1" resistance="2" saturation="3 0 0"/>',
        "",
        [(-60, 60)],
        "forcerange at standstill",
    ),
}


def write(folder: Path, actuator: str, joint: str = "", name: str = "robot.xml") -> str:
    path = folder / name
    path.write_text(ROBOT.format(actuator=actuator, joint=joint))
    return str(path)


@pytest.mark.parametrize("case", CASES)
def test_limits_follow_from_what_bounds_the_actuator(tmp_path: Path, case: str) -> None:
    actuator, joint, expected, why = CASES[case]
    loaded = UserModel(write(tmp_path, actuator, joint)).load()
    model = compile_model(loaded.spec, "robot")
    np.testing.assert_allclose(model.actuator_ctrlrange, expected, rtol=1e-12)
    assert model.actuator_ctrllimited.all()
    assert why in loaded.limits[0].why
    assert why in loaded.report()[0]


def test_the_largest_velocity_of_a_servo_takes_its_largest_force(tmp_path: Path) -> None:
    """MuJoCo itself: at the inferred limit, and at rest, a velocity servo pushes with the joint's limit."""
    actuator = '<velocity name="a" joint="j" kv="2"/><position name="b" joint="j" kp="7" gear="2"/>'
    loaded = UserModel(write(tmp_path, actuator, TORQUE)).load()
    model = compile_model(loaded.spec, "robot")
    data = mujoco.MjData(model)
    data.ctrl[0] = model.actuator_ctrlrange[0, 1]
    mujoco.mj_forward(model, data)
    assert data.actuator_force[0] == pytest.approx(6)
    data.qpos[0], data.ctrl[:] = model.jnt_range[0, 1], (0, model.actuator_ctrlrange[1, 1])
    mujoco.mj_forward(model, data)
    assert data.actuator_force[1] == pytest.approx(0)  # a servo at the end of its joint's range rests there


UNBOUNDED = {
    "motor": '<motor name="a" joint="j"/>',
    "position of a ball joint": '<position name="a" joint="wrist" gear="1 0 0"/>',
    "thruster": '<motor name="a" site="s" gear="0 0 1 0 0 0"/>',
    "integrated motor": '<general name="a" joint="j" dyntype="integrator"/>',
}


@pytest.mark.parametrize("case", UNBOUNDED)
def test_what_nothing_bounds_is_refused_with_the_setting(tmp_path: Path, case: str) -> None:
    path = write(tmp_path, UNBOUNDED[case])
    with pytest.raises(
        ModelError, match=r"'a' has no limits.*; set 'env\.limits\.a=\[-1, 1\]' with its own numbers, or"
    ):
        UserModel(path).check()
    loaded = UserModel(path, limits={"a": (-2.0, 3.0)}).load()
    assert compile_model(loaded.spec, path).actuator_ctrlrange.tolist() == [[-2, 3]]
    assert loaded.limits[0].why == "env.limits"


@pytest.mark.parametrize(
    "name", ["m.x", "kn=e.e [1]", '../../it\'s "x"', "a: {b}, #c", "$HOME `id`", "ü%n", ""]
)
def test_the_proposed_setting_can_be_pasted_into_a_shell(tmp_path: Path, name: str) -> None:
    """A shell makes one word of it, and with that word the robot has limits."""
    path = write(tmp_path, f"<motor name={quoteattr(name)} joint='j'/>" if name else '<motor joint="j"/>')
    with pytest.raises(ModelError) as refusal:
        UserModel(path).check()
    advice = re.search(r"; set (.*) with its own numbers", str(refusal.value))
    assert advice
    printed = subprocess.run(
        ["sh", "-c", f"printf '%s\\n' {advice[1]}"], capture_output=True, text=True, check=True
    )
    (word,) = printed.stdout.splitlines()
    cfg = load_config("hold_pose.yaml", [f"env.model={path}", word])
    assert cfg.env.limits == {name or "actuator_0": (-1, 1)}
    UserModel(path, limits=cfg.env.limits).check()


def test_limits_of_the_file_stay_unless_the_user_sets_others(tmp_path: Path) -> None:
    path = write(tmp_path, '<motor name="a" joint="j" ctrlrange="-9 9"/>', TORQUE)
    assert UserModel(path).load().limits == ()
    loaded = UserModel(path, limits={"a": (-1.0, 1.0)}).load()
    assert compile_model(loaded.spec, path).actuator_ctrlrange.tolist() == [[-1, 1]]


def test_a_limit_that_fits_nothing_is_told(tmp_path: Path) -> None:
    path = write(tmp_path, '<motor name="pull" joint="j"/>')
    with pytest.raises(SettingError, match=r"env\.limits\.pul = \[-1, 1\]: .* did you mean 'pull'"):
        UserModel(path, limits={"pul": (-1, 1)}).load()
    with pytest.raises(SettingError, match=r"env\.limits\.pull = \[1, 1\]: is no range"):
        UserModel(path, limits={"pull": (1, 1)}).load()


MANY = {
    "orientation": ('<orientation name="o" joint="wrist" kp="8"/>', ("wrist_x", "wrist_y", "wrist_z")),
    "pid": ('<pid name="p" joint="j" kp="5" kv="1"/>', ("j_position", "j_velocity")),
}


@pytest.mark.parametrize("case", MANY)
def test_actuators_with_several_controls_run_as_in_mujoco(tmp_path: Path, case: str) -> None:
    """One control step of random actions beside a plain `mj_step`."""
    actuator, names = MANY[case]
    path = write(tmp_path, actuator + '<motor name="m" joint="j" ctrlrange="-1 1"/>')
    env = make_env("hold_pose", num_envs=4, device=CPU, model=path)
    assert env.spec.joint_names == (*names, "j")
    state, model = env.physics.state, env.physics.model
    before = state.qpos.clone(), state.qvel.clone()
    action = 2 * torch.rand(4, model.nu, generator=torch.Generator().manual_seed(0)) - 1
    ctrl = env.task.control(action)
    env.step(action)
    for world in range(4):
        data = mujoco.MjData(model)
        data.qpos, data.qvel, data.ctrl = before[0][world], before[1][world], ctrl[world]
        for _ in range(env.task.substeps):
            mujoco.mj_step(model, data)
        np.testing.assert_allclose(state.qpos[world], data.qpos, rtol=1e-9, atol=1e-12)
    low, high = env.interface().targets.low, env.interface().targets.high
    assert len(low) == len(high) == model.nu == len(env.interface().servos)


def test_a_robot_that_cannot_move_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "post.xml"
    path.write_text(
        '<mujoco><worldbody><body><geom size="1"/><site name="s"/></body></worldbody>'
        '<actuator><motor site="s" ctrlrange="-1 1"/></actuator></mujoco>'
    )
    with pytest.raises(ModelError, match="no joints, so nothing can move; add a <joint>"):
        UserModel(str(path)).check()


def test_sleep_is_turned_off_and_told(tmp_path: Path) -> None:
    """Without it C MuJoCo would refuse to step a batch."""
    path = Path(write(tmp_path, '<motor name="a" joint="j" ctrlrange="-1 1"/>'))
    flag = '<option><flag sleep="enable"/></option>'
    path.write_text(path.read_text().replace("<worldbody>", f"{flag}<worldbody>"))
    env = make_env("hold_pose", num_envs=2, device=CPU, model=str(path))
    env.step(torch.zeros(2, 1))
    assert "sleep is turned off: no engine here lets bodies sleep" in env.notes


def test_a_sensor_that_a_tuple_names_is_kept(tmp_path: Path) -> None:
    path = Path(write(tmp_path, '<motor name="a" joint="j" ctrlrange="-1 1"/>'))
    extra = (
        '<sensor><jointpos name="p" joint="j"/><jointpos name="q" joint="j"/></sensor>'
        '<custom><tuple name="t"><element objtype="sensor" objname="p"/></tuple></custom>'
    )
    path.write_text(path.read_text().replace("</mujoco>", f"{extra}</mujoco>"))
    model = make_env("hold_pose", num_envs=1, device=CPU, model=str(path)).physics.model
    assert [model.sensor(i).name for i in range(model.nsensor)] == ["p"]


URDF = """<robot name="r">
  <link name="base"/>
  <link name="a">{inertial}<visual><geometry><mesh filename="package://r/a.dae"/></geometry></visual>
    <collision><geometry><mesh filename="package://r/meshes/a.obj"/></geometry></collision></link>
  <link name="b">{inertial}</link><link name="c">{inertial}</link>
  <joint name="lift" type="revolute"><parent link="base"/><child link="a"/><axis xyz="0 1 0"/>
    <limit lower="-1" upper="1" effort="12" velocity="3"/></joint>
  <joint name="turn" type="revolute"><parent link="a"/><child link="b"/><axis xyz="0 1 0"/>
    <limit lower="-1" upper="1" effort="{effort}" velocity="3"/></joint>
  <joint name="follow" type="revolute"><parent link="b"/><child link="c"/><axis xyz="0 1 0"/>
    <mimic joint="turn"/><limit lower="-1" upper="1" effort="5" velocity="3"/></joint>
  <gazebo><plugin name="control" filename="libcontrol.so"/></gazebo>
</robot>"""
INERTIAL = (
    '<inertial><mass value="1"/><inertia ixx="0.1" iyy="0.1" izz="0.1" ixy="0" ixz="0" iyz="0"/></inertial>'
)


def urdf(folder: Path, effort: str) -> str:
    (folder / "r" / "meshes").mkdir(parents=True)
    (folder / "r" / "meshes" / "a.obj").write_text(
        "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 3 2\nf 1 2 4\nf 1 4 3\nf 2 3 4\n"
    )
    (folder / "r" / "urdf").mkdir()
    path = folder / "r" / "urdf" / "robot.urdf"
    path.write_text(URDF.format(inertial=INERTIAL, effort=effort))
    return str(path)


def test_a_urdf_gets_a_motor_on_each_joint_within_its_effort(tmp_path: Path) -> None:
    """Its meshes are found by `package://`, what is only looked at is left out, and mimics are not driven."""
    loaded = UserModel(urdf(tmp_path, "7"), root=str(tmp_path / "r")).load()
    model = compile_model(loaded.spec, "robot")
    assert [model.actuator(i).name for i in range(model.nu)] == ["lift", "turn"]
    assert model.actuator_ctrlrange.tolist() == [[-12, 12], [-7, 7]]
    assert model.nmesh == 1
    assert loaded.notes == ("URDF has no actuators: 2 joints got a motor each",)


def test_a_urdf_without_effort_needs_limits(tmp_path: Path) -> None:
    robot = UserModel(urdf(tmp_path, "0"), root=str(tmp_path / "r"))
    with pytest.raises(ModelError, match=r"'turn' has no limits.* set 'env\.limits\.turn="):
        robot.check()
    UserModel(robot.name, robot.root, {"turn": (-1, 1)}).check()


def described(loaded: LoadedModel) -> int:
    return compile_model(loaded.spec, "robot").nu


def test_robots_of_menagerie_have_names() -> None:
    assert described(UserModel("menagerie:unitree_go1/scene.xml").load()) == 12
    for name, problem in {
        "menagerie:unitree_go1x": r"no robot 'unitree_go1x' there; did you mean 'unitree_go1'",
        "menagerie:unitree_go1/go2.xml": r"no file 'go2\.xml' there; did you mean 'go1\.xml'",
    }.items():
        with pytest.raises(SettingError, match=problem):
            UserModel(name).load()


def test_robots_of_robot_descriptions_have_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a package in its place that has one robot, and one that cannot be downloaded."""
    with monkeypatch.context() as without:
        without.setitem(__import__("sys").modules, "robot_descriptions", None)
        with pytest.raises(SettingError, match=r"not installed here; pip install robot_descriptions"):
            UserModel("robot_descriptions:arm_mj_description").load()
    package = tmp_path / "robot_descriptions"
    package.mkdir()
    (package / "__init__.py").write_text("")
    robot = write(tmp_path, '<position name="a" joint="j"/>')
    (package / "arm_mj_description.py").write_text(
        f"PACKAGE_PATH = {str(tmp_path)!r}\nMJCF_PATH = {robot!r}\n"
    )
    (package / "far_description.py").write_text("raise OSError('no\\nnetwork')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert described(UserModel("robot_descriptions:arm_mj_description").load()) == 1
    for name, problem in {
        "arm_mj_descriptoin": r"no description .* did you mean 'arm_mj_description'",
        "far_description": r"cannot be had \(no network\); connect to the internet",
    }.items():
        with pytest.raises(SettingError, match=problem):
            UserModel(f"robot_descriptions:{name}").load()
