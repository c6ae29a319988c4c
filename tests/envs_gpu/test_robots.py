"""Robots against the MJCF that their makers publish."""

import mujoco
import numpy as np
import pytest

from envs_gpu.errors import RobotUnavailableError
from envs_gpu.registry import UnknownNameError
from envs_gpu.robots import ROBOTS, get_robot, menagerie_model, robot_model

every_robot = pytest.mark.parametrize("robot", ROBOTS.values(), ids=ROBOTS)


def at_default(robot, **options):
    model = robot_model(robot).compile()
    for name, value in options.items():
        setattr(model.opt, name, value)
    data = mujoco.MjData(model)
    mujoco.mj_resetDataKeyframe(model, data, model.key("default").id)
    mujoco.mj_forward(model, data)
    return model, data


@every_robot
def test_every_joint_has_one_motor_within_its_range(robot):
    model, data = at_default(robot)
    hinges = [i for i in range(model.njnt) if model.jnt_type[i] != mujoco.mjtJoint.mjJNT_FREE]
    assert model.actuator_trnid[:, 0].tolist() == hinges
    np.testing.assert_array_equal(model.actuator_ctrlrange, model.jnt_range[hinges])
    pose = data.qpos[model.jnt_qposadr[hinges]]
    low, high = model.jnt_range[hinges].T
    assert (low - 1e-3 <= pose).all()
    assert (pose <= high + 1e-3).all()
    np.testing.assert_allclose(data.ctrl, pose)


@every_robot
def test_bodies_are_the_makers(robot):
    """Masses, frames and joints are what the MJCF says; only the actuation is ours."""
    ours, theirs = at_default(robot)[0], menagerie_model(robot.folder, robot.entry).compile()
    for field in ("body_mass", "body_inertia", "body_pos", "jnt_range", "jnt_axis", "geom_size"):
        np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field), err_msg=field)


@every_robot
def test_motor_torque_is_the_servo_law(robot):
    model, data = at_default(robot, disableflags=int(mujoco.mjtDisableBit.mjDSBL_CONTACT))
    rng = np.random.default_rng(0)
    joints = model.actuator_trnid[:, 0]
    motors = [robot.motor(model.joint(joint).name) for joint in joints]
    for scale in (0.01, 0.3):  # within the limits, and beyond them
        data.qpos[model.jnt_qposadr[joints]] += scale * rng.normal(size=model.nu)
        data.qvel[:] = scale * rng.normal(size=model.nv)
        mujoco.mj_forward(model, data)
        position = data.qpos[model.jnt_qposadr[joints]]
        velocity = data.qvel[model.jnt_dofadr[joints]]
        expected = [
            np.clip(m.stiffness * (c - q) - m.damping * v, -m.effort_limit, m.effort_limit)
            for m, c, q, v in zip(motors, data.ctrl, position, velocity, strict=True)
        ]
        np.testing.assert_allclose(data.actuator_force, expected, rtol=1e-9, atol=1e-9)


@every_robot
def test_end_effectors_and_base_exist(robot):
    model, data = at_default(robot)
    assert model.body(robot.base_body).id > 0
    heights = [data.site(name).xpos[2] for name in robot.end_effectors]
    if robot.base_height_m:  # stands on its feet: each within 5 cm of the ground
        assert np.abs(heights).max() < 0.05


def test_unknown_robot():
    with pytest.raises(UnknownNameError, match="did you mean 'go1'"):
        get_robot("go2")


def test_robot_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setenv("MENAGERIE_ROOT", str(tmp_path))
    with pytest.raises(RobotUnavailableError, match="MENAGERIE_ROOT"):
        robot_model(get_robot("go1"))
    (tmp_path / "unitree_go1").mkdir()
    with pytest.raises(RobotUnavailableError, match=r"go1\.xml does not exist; .* MENAGERIE_ROOT"):
        robot_model(get_robot("go1"))


def test_robot_that_cannot_be_downloaded(monkeypatch, tmp_path):
    monkeypatch.delenv("MENAGERIE_ROOT", raising=False)
    monkeypatch.setenv("MENAGERIE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("MENAGERIE_BASE_URL", (tmp_path / "nothing").as_uri())
    with pytest.raises(RobotUnavailableError, match="MENAGERIE_ROOT"):
        robot_model(get_robot("go1"))
