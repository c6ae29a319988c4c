"""Where a robot starts: a keyframe with all its fields, and noise that tears no loop and passes no limit."""

import mujoco
import numpy as np
import pytest
import torch

from envs_gpu.errors import ModelError, SettingError
from envs_gpu.make import make_env
from envs_gpu.physics._capacity import capacity
from envs_gpu.scene.keyframe import data_at, find_keyframe, move_mocap_bodies
from envs_gpu.scene.start_noise import NOISE

CPU = torch.device("cpu")
# The keyframe `bent` holds 1 rad through the actuator's own state.
REMEMBERS = """<mujoco><option timestep="0.005"/>
  <worldbody><body pos="0 0 1"><joint name="j" axis="0 1 0" damping="0.5"/>
    <geom type="capsule" fromto="0 0 0 0.3 0 0" size="0.03" mass="0.5"/></body></worldbody>
  <actuator><intvelocity joint="j" kp="40" ctrlrange="-1 1" actrange="-3 3"/></actuator>
  <keyframe><key qpos="0.5" act="0.5"/><key name="bent" qpos="1" qvel="0.25" act="1"/></keyframe></mujoco>"""
# Four bars in a plane, the last of which has a ball at its end, and a slide in the middle of its short range.
BARS = """<mujoco><compiler angle="radian"/><worldbody><body pos="0 0 1">
    <joint name="a" axis="0 1 0" damping="1"/><geom type="capsule" fromto="0 0 0 0 0 -0.3" size="0.02"/>
    <body pos="0 0 -0.3"><joint name="b" axis="0 1 0" range="-0.02 0.03" limited="true"/>
      <geom type="capsule" fromto="0 0 0 0.4 0 0" size="0.02"/>
      <body name="last" pos="0.4 0 0"><joint name="c" type="ball"/>
        <geom type="capsule" fromto="0 0 0 0 0 0.3" size="0.02"/></body></body></body>
  <body pos="1 0 1"><joint name="slide" type="slide" range="-0.01 0.01" limited="true"/>
    <geom size="0.05"/></body>
  <body pos="2 0 1"><joint name="ball" type="ball" range="0 0.05" limited="true"/>
    <geom pos="0.1 0 0" size="0.05"/></body>
  </worldbody>
  <equality><connect body1="last" anchor="0 0 0.3"/></equality>
  <actuator><motor joint="a" ctrlrange="-1 1"/><motor joint="slide" ctrlrange="-1 1"/>
    <motor joint="ball" gear="1 0 0" ctrlrange="-1 1"/></actuator></mujoco>"""
CLOTH = """<mujoco><worldbody><geom type="plane" size="0 0 1"/>
  <body pos="0 0 0.5"><joint name="j" axis="0 1 0" damping="0.5"/>
    <geom type="capsule" fromto="0 0 0 0.3 0 0" size="0.03" mass="0.5"/></body>
  <flexcomp name="cloth" type="grid" count="4 4 1" spacing="0.04 0.04 0.04" pos="0 0.6 0.3" radius="0.005"
    dim="2" mass="0.1"><edge equality="true" damping="0.01"/><contact selfcollide="none"/></flexcomp>
  </worldbody><actuator><motor joint="j" gear="3" ctrlrange="-1 1"/></actuator></mujoco>"""


@pytest.fixture
def make(tmp_path):
    def make(mjcf, num_envs=4, **more):
        path = tmp_path / "robot.xml"
        path.write_text(mjcf)
        return make_env("hold_pose", num_envs=num_envs, device=CPU, model=str(path), **more)

    return make


def violations(env):
    """`[N]` the largest violation of an equality constraint in each world, by C MuJoCo."""
    model, worst = env.physics.model, []
    data = mujoco.MjData(model)
    for qpos in env.physics.state.qpos.numpy():
        data.qpos[:] = qpos
        mujoco.mj_fwdPosition(model, data)
        worst.append(np.abs(data.efc_pos[: data.ne]).max())
    return np.array(worst)


@pytest.mark.parametrize(
    ("keyframe", "act"), [(None, 0.5), ("bent", 1.0), (1, 1.0), (0, 0.5), ("qpos0", 0.0)]
)
def test_a_keyframe_is_named_or_numbered(make, keyframe, act):
    env = make(REMEMBERS, keyframe=keyframe, task_parameters={"start_noise_scale": 0.0})
    state = env.physics.state
    assert state.qpos.unique().item() == state.act.unique().item() == act
    assert state.qvel.unique().item() == (0.25 if act == 1.0 else 0.0)


@pytest.mark.parametrize(
    "backend", ["mujoco", *(pytest.param(name, marks=pytest.mark.slow) for name in ("warp", "mjx", "newton"))]
)
def test_activations_start_as_the_keyframe_has_them_and_are_observed(make, backend):
    """With them zero action holds the pose, in the first episode and after a restart."""
    env = make(REMEMBERS, keyframe="bent", backend=backend, task_parameters={"start_noise_scale": 0.0})
    for _ in range(2):
        assert env.obs["policy"][:, 2].tolist() == [1.0] * 4  # after position and velocity
        for _ in range(50):
            result = env.step(torch.zeros(4, 1))
        assert result.metrics["reward/pose"].min() > 0.99
        env.restart(torch.tensor([True, False, True, False]))
        assert env.physics.state.act.flatten().tolist() == pytest.approx([1.0] * 4, abs=1e-6)


def test_an_unknown_keyframe_is_named_with_those_there_are(make):
    problem, fix = r"robot\.xml has no such keyframe", r"did you mean 'bent'\? known: 0, bent, qpos0"
    message = rf"env\.keyframe = 'bend': .*{problem}; {fix}"
    with pytest.raises(SettingError, match=message):
        make(REMEMBERS, keyframe="bend")
    with pytest.raises(SettingError, match=r"env\.keyframe = 2"):
        make(REMEMBERS, keyframe=2)


MOCAP = """<mujoco><worldbody>
  <body name="m" mocap="true" pos="0 0 1" euler="0 0 30"><geom size="0.02"/></body>
  <body name="tip" pos="0.2 0 1"><freejoint/><geom size="0.05"/></body>
  <body name="rod" pos="0 0.5 1"><freejoint/><geom type="capsule" size="0.02 0.1"/></body></worldbody>
  <equality><weld body1="tip" body2="m"/><connect body1="m" body2="rod" anchor="0 0.1 0"/></equality>
  <keyframe><key mpos="0.3 0.1 1.5" mquat="0.8 0 0.6 0"/></keyframe></mujoco>"""


def test_mocap_bodies_start_where_the_keyframe_has_them_and_constraints_stay():
    """The model's own start is the keyframe's; the equality constraints are violated by as much as in it."""
    spec = mujoco.MjSpec.from_string(MOCAP)
    model = spec.compile()
    data = data_at(model, 0)
    move_mocap_bodies(spec, model, data)
    moved = spec.compile()
    start = data_at(moved, None)
    np.testing.assert_allclose(start.mocap_pos, [[0.3, 0.1, 1.5]], atol=1e-12)
    np.testing.assert_allclose(start.mocap_quat, [[0.8, 0, 0.6, 0]], atol=1e-12)
    start.qpos[:] = data.qpos
    mujoco.mj_fwdPosition(moved, start)
    np.testing.assert_allclose(start.efc_pos[: start.ne], data.efc_pos[: data.ne], atol=1e-9)
    assert np.abs(data.efc_pos[: data.ne]).max() > 0.1  # or there would be nothing to see


def test_a_model_without_keyframes_has_its_reference():
    model = mujoco.MjModel.from_xml_string(BARS)
    assert find_keyframe(model, None, "x") is None
    assert find_keyframe(model, "qpos0", "x") is None


@pytest.mark.parametrize(("scale", "largest"), [(0.0, 1e-8), (0.5, 1e-4), (1.0, 1e-8)])
def test_start_noise_keeps_loops_closed(make, scale, largest):
    """And it does move what the loop leaves free, to other places in each world."""
    env = make(BARS, 128, task_parameters={"start_noise_scale": scale})
    assert violations(env).max() < largest
    spread = env.physics.state.qpos.std(0)
    assert (spread[0] > 0.1 * scale * NOISE) == (scale > 0)
    velocities, model = env.physics.state.qvel.numpy(), env.physics.model
    data = mujoco.MjData(model)
    for qpos, qvel in zip(env.physics.state.qpos.numpy(), velocities, strict=True):
        data.qpos[:], data.qvel[:] = qpos, qvel
        mujoco.mj_forward(model, data)
        assert np.abs(data.efc_vel[: data.ne]).max() < (1e-9 if scale == 1.0 else 0.01)


def test_a_pose_that_is_torn_is_closed_before_it_starts(make):
    torn = BARS.replace("</mujoco>", '<keyframe><key qpos="0.1 0 1 0 0 0 0 1 0 0 0"/></keyframe></mujoco>')
    env = make(torn, task_parameters={"start_noise_scale": 0.0})
    assert violations(env).max() < 1e-8
    target = env.obs["policy"][0, -env.physics.model.nq :]
    assert target[0].item() == pytest.approx(0.1)  # what is to be held is as the file says


def test_start_noise_stays_within_limits(make):
    env = make(BARS, 256)
    model, qpos = env.physics.model, env.physics.state.qpos
    b, slide = (qpos[:, model.joint(name).qposadr[0]] for name in ("b", "slide"))
    assert b.min() >= -0.02 - 1e-9
    assert b.max() <= 0.03 + 1e-9
    assert slide.abs().max() <= 0.01
    first = model.joint("ball").qposadr[0]
    angle = 2 * torch.atan2(qpos[:, first + 1 : first + 4].norm(dim=-1), qpos[:, first])
    assert 0.04 < angle.max() <= 0.05 + 1e-9


def test_starts_do_not_depend_on_the_number_of_worlds(make):
    few, many = make(BARS, 2), make(BARS, 16)
    torch.testing.assert_close(many.physics.state.qpos[:2], few.physics.state.qpos, rtol=0, atol=0)


def test_flex_vertices_start_where_they_are_and_do_not_count(make):
    """A cloth beside an arm: its edges keep their length, and the reward is for the arm."""
    env = make(CLOTH, 8)
    model, state = env.physics.model, env.physics.state
    own = model.joint("j").qposadr[0]
    others = np.delete(np.arange(model.nq), own)
    assert state.qpos[:, own].std() > 0.01
    assert (state.qpos[:, others] == torch.tensor(model.qpos0)[others]).all()
    assert (state.qvel[:, others] == 0).all()
    error = (state.qpos[:, own] - model.qpos0[own]).abs()
    env.task.max_episode_steps = 10**6
    before = env.task.outcome(state, env._episode(), torch.zeros(8, 1)).measures["pose_error"]
    torch.testing.assert_close(before, error)


def test_the_reward_is_bounded_however_fast_the_robot_is(make):
    env = make(REMEMBERS)
    episode, state = env._episode(), env.physics.state
    for speed, cost in ((0.1, -0.005 * 0.01), (1e3, -1.0), (1e12, -1.0)):
        fast = state._replace(qvel=torch.full_like(state.qvel, speed))
        reward = env.task.outcome(fast, episode, torch.zeros(4, 1)).reward
        assert reward["velocity"][0].item() == pytest.approx(cost, rel=1e-3)


@pytest.mark.parametrize(
    "body",
    [
        '<body><geom size="0.1"/><site name="s"/></body>',
        '<body><geom size="0.1"/><site name="s"/></body><body><freejoint/><geom size="0.1"/></body>',
    ],
    ids=("no_joints", "a_ball_elsewhere"),
)
def test_a_robot_that_cannot_move_is_one_line(make, body):
    motor = '<motor site="s" gear="1 0 0 0 0 0" ctrlrange="-1 1"/>'
    message = r"robot\.xml: (no joints, so nothing|nothing that its actuators act on) can move; add"
    with pytest.raises(ModelError, match=message):
        make(f"<mujoco><worldbody>{body}</worldbody><actuator>{motor}</actuator></mujoco>")


def test_engines_that_allocate_have_room_for_a_cloth():
    """For every constraint and contact that C MuJoCo finds while it falls onto the ground and lies there."""
    model = mujoco.MjModel.from_xml_string(CLOTH)
    room = capacity(model, np.zeros((0, 2), int))
    data, most = mujoco.MjData(model), [0, 0]
    for _ in range(300):
        mujoco.mj_step(model, data, 2)
        most = [max(most[0], data.nefc), max(most[1], data.ncon)]
    assert data.ne > 20
    assert most[1] >= 16  # it lies on the ground
    assert room.constraints >= most[0]
    assert room.contacts >= most[1]
