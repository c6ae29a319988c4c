"""`hold_pose` on robots of every build: what it asks of an MJCF file, and what it does with it."""

import mujoco
import numpy as np
import pytest
import torch

from envs_gpu.errors import ModelError
from envs_gpu.make import make_env
from envs_gpu.scene.start_noise import NOISE
from envs_gpu.tasks.hold_pose import EXAMPLE
from envs_gpu.terms.pose import Pose, rotation_matrix

CPU = torch.device("cpu")
# A floating base with every kind of joint and actuator, a keyframe, and a cube that is none of the robot's.
ZOO = """<mujoco>
  <option timestep="0.004"/>
  <worldbody>
    <geom name="ground" type="plane" size="0 0 1"/>
    <body name="base" pos="0 0 1">
      <freejoint name="root"/>
      <geom type="box" size="0.3 0.3 0.1"/>
      <body name="arm" pos="0.5 0 0">
        <joint name="ball" type="ball"/>
        <geom type="capsule" fromto="0 0 0 0.3 0 0" size="0.04" contype="0" conaffinity="0"/>
        <site name="tip" pos="0.3 0 0"/>
        <body name="rod" pos="0.3 0 0">
          <joint name="slide" type="slide" axis="1 0 0" range="0 0.2" limited="true"/>
          <joint name="hinge" type="hinge" axis="0 1 0" damping="1"/>
          <geom size="0.05" contype="0" conaffinity="0"/>
        </body>
      </body>
    </body>
    <body name="cube" pos="2 0 0.1"><freejoint/><geom type="box" size="0.1 0.1 0.1"/></body>
  </worldbody>
  <tendon><fixed name="both"><joint joint="slide" coef="1"/><joint joint="hinge" coef="0.5"/></fixed></tendon>
  <actuator>
    <motor joint="slide" ctrlrange="-3 5"/>
    <position name="servo" joint="hinge" kp="5" ctrlrange="-1 2"/>
    <motor name="pull" tendon="both" ctrlrange="-1 1"/>
    <motor name="thrust" site="tip" gear="0 0 1 0 0 0" ctrlrange="0 2"/>
    <motor joint="ball" gear="1 0 0" ctrlrange="-1 1"/>
    <general name="slow" joint="hinge" dyntype="filter" dynprm="0.1" ctrlrange="-1 1"/>
  </actuator>
  <keyframe>
    <key name="pose" ctrl="0 1.5 0 0 0 0" act="0.3"
      qpos="1 2 1.5 0.924 0 0 0.383 0.966 0.259 0 0 0.1 0.7 3 0 0.1 1 0 0 0"/>
  </keyframe>
</mujoco>
"""


@pytest.fixture
def zoo(tmp_path):
    path = tmp_path / "zoo.xml"
    path.write_text(ZOO)
    return str(path)


def mujoco_model(path):
    model = mujoco.MjModel.from_xml_path(path)
    data = mujoco.MjData(model)
    if model.nkey:
        mujoco.mj_resetDataKeyframe(model, data, 0)
    return model, data


def test_poses_are_mujocos(zoo):
    """Differences, displacements and the axis that is up, against MuJoCo's own functions."""
    model, _ = mujoco_model(zoo)
    pose, rng = Pose(model, CPU), np.random.default_rng(0)
    origins, changes, ends, differences = [], [], [], []
    for scale in (0.0, 1e-9, 0.1, 1.0, 3.0, 6.0):
        for _ in range(20):
            origin, change = rng.normal(size=model.nq), scale * rng.normal(size=model.nv)
            mujoco.mj_normalizeQuat(model, origin)
            end, difference = origin.copy(), np.zeros(model.nv)
            mujoco.mj_integratePos(model, end, change, 1.0)
            mujoco.mj_differentiatePos(model, difference, 1.0, origin, end)
            for column, value in zip(
                (origins, changes, ends, differences), (origin, change, end, difference), strict=True
            ):
                column.append(value)
    origin, change, end, difference = (
        torch.tensor(np.array(x)) for x in (origins, changes, ends, differences)
    )
    torch.testing.assert_close(pose.displace(origin, change), end, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(pose.difference(end, origin), difference, rtol=1e-7, atol=1e-7)
    for turn in origin[:5, 3:7]:
        matrix = np.zeros(9)
        mujoco.mju_quat2Mat(matrix, turn.numpy())
        np.testing.assert_allclose(rotation_matrix(turn), matrix.reshape(3, 3), atol=1e-12)


def test_the_pose_is_the_keyframe_and_zero_is_its_control(zoo):
    env = make_env("hold_pose", num_envs=3, device=CPU, model=zoo)
    model, data = mujoco_model(zoo)
    low, high = model.actuator_ctrlrange.T
    task = env.task
    np.testing.assert_allclose(env.obs["policy"][0, -model.nq :], data.qpos, rtol=1e-6)
    for action, ctrl in ((0, data.ctrl), (1, high), (-1, low)):
        np.testing.assert_allclose(task.control(torch.full((3, model.nu), float(action)))[1], ctrl, atol=1e-6)
    assert env.spec.joint_names == ("slide", "hinge_servo", "pull", "thrust", "ball", "hinge_slow")
    assert env.spec.control_hz == pytest.approx(50)


def test_start_is_near_the_pose_within_the_limits_and_not_lower(zoo):
    env = make_env("hold_pose", num_envs=512, device=CPU, model=zoo)
    model, data = mujoco_model(zoo)
    qpos = env.physics.state.qpos
    change = env.task._pose.difference(qpos, torch.tensor(data.qpos).expand_as(qpos))
    assert change.abs().max() <= NOISE + 1e-9
    cube = slice(model.joint("root").dofadr[0] + 6 + 3 + 2, None)
    assert (change[:, cube] == 0).all()
    moving = change[:, : cube.start]
    assert (moving.std(0) > 0.1 * NOISE * (1 / 3) ** 0.5).all()
    assert (change[:, 2] >= 0).all()
    slide = qpos[:, model.joint("slide").qposadr[0]]
    assert slide.min() >= 0
    assert slide.max() <= 0.2


def place(env, qpos, qvel=None):
    everyone = torch.ones(env.num_envs, dtype=torch.bool)
    qpos = torch.tensor(qpos).expand(env.num_envs, -1)
    env.place(everyone, qpos, torch.zeros(env.num_envs, env.physics.model.nv, dtype=torch.float64))


def test_a_floating_base_that_lies_has_fallen(zoo):
    env = make_env("hold_pose", num_envs=2, device=CPU, model=zoo)
    _, data = mujoco_model(zoo)
    still = torch.zeros(2, env.spec.action_dim)
    place(env, data.qpos)
    held = env.step(still)
    assert not held.terminated.any()
    assert held.metrics["reward/upright"][0] == pytest.approx(0.5, abs=1e-3)
    over = data.qpos.copy()
    over[3:7] = 0, 1, 0, 0
    low = data.qpos.copy()
    low[2] *= 0.45  # of its height; below 0.5 it has fallen
    for fallen in (over, low):
        place(env, fallen)
        assert env.step(still).terminated.all()


def test_holding_earns_more_than_leaving():
    env = make_env("hold_pose", num_envs=4, device=CPU)
    _, data = mujoco_model(str(EXAMPLE))
    env.task.max_episode_steps = 10**6

    def earn(action):
        place(env, data.qpos)
        return sum(env.step(action.expand(4, -1)).reward.mean().item() for _ in range(100))

    assert earn(torch.zeros(3)) > 95
    assert earn(torch.ones(3)) < 50


def test_a_model_without_keyframe_holds_its_reference(tmp_path):
    path = tmp_path / "plain.xml"
    path.write_text(ZOO[: ZOO.index("  <keyframe>")] + "</mujoco>")
    env = make_env("hold_pose", num_envs=2, device=CPU, model=str(path))
    model, _ = mujoco_model(str(path))
    np.testing.assert_allclose(env.obs["policy"][0, -model.nq :], model.qpos0, rtol=1e-6)


def test_a_floating_robot_without_ground_gets_one(tmp_path):
    path = tmp_path / "adrift.xml"
    path.write_text(ZOO.replace('<geom name="ground" type="plane" size="0 0 1"/>', ""))
    env = make_env("hold_pose", num_envs=2, device=CPU, model=str(path))
    assert env.physics.model.geom("floor").type[0] == mujoco.mjtGeom.mjGEOM_PLANE


def test_errors_name_the_file(tmp_path):
    path = tmp_path / "loose.xml"
    path.write_text(ZOO.replace(' ctrlrange="-1 2"', ""))
    with pytest.raises(ModelError, match=r"loose\.xml: actuator 'servo' has no limits"):
        make_env("hold_pose", num_envs=1, device=CPU, model=str(path))


def test_warp_agrees_with_the_referee_on_every_joint(zoo):
    """One control step from the same states: what float32 leaves."""
    worlds = {
        backend: make_env("hold_pose", backend=backend, num_envs=8, device=CPU, model=zoo)
        for backend in ("mujoco", "warp")
    }
    generator = torch.Generator().manual_seed(0)
    everyone = torch.ones(8, dtype=torch.bool)
    for _ in range(20):
        state = worlds["mujoco"].physics.state
        qpos, qvel = state.qpos.float(), state.qvel.float()
        action = 2 * torch.rand(8, 6, generator=generator) - 1
        for env in worlds.values():
            env.place(everyone, qpos, qvel)
        ours, theirs = (env.step(action) for env in worlds.values())
        going = ~ours.terminated
        torch.testing.assert_close(
            theirs.final_obs["policy"][going], ours.final_obs["policy"][going], rtol=1e-4, atol=2e-4
        )
        torch.testing.assert_close(theirs.reward[going], ours.reward[going], rtol=1e-4, atol=1e-4)
