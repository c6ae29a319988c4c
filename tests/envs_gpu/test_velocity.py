"""Velocity tracking: what the tasks read against C MuJoCo and numpy, and what they reward by hand."""

import mujoco
import numpy as np
import pytest
import torch

from envs_gpu.make import make_env
from envs_gpu.random import WorldRandom
from envs_gpu.tasks.base import Episode
from envs_gpu.terms import locomotion

CPU = torch.device("cpu")
TASKS = {"go1_velocity": 4, "g1_velocity": 2}
every_task = pytest.mark.parametrize("task", TASKS)


def played(task, num_envs=8, num_steps=25):
    """An env after some random steps: robots tilted, moving, some feet in the air."""
    env = make_env(task, num_envs=num_envs, device=CPU, seed=1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(num_steps):
        result = env.step(torch.rand(num_envs, env.spec.action_dim, generator=generator) - 0.5)
    return env, result


def forwarded(env, world):
    """C MuJoCo's own data of a world's state."""
    data = mujoco.MjData(env.physics.model)
    state = env.physics.state
    data.qpos[:], data.qvel[:] = state.qpos[world].numpy(), state.qvel[world].numpy()
    data.ctrl[:] = state.ctrl[world].numpy()
    mujoco.mj_forward(env.physics.model, data)
    return data


@every_task
def test_observations_are_what_mujoco_says(task):
    env, _ = played(task)
    model, feet = env.physics.model, TASKS[task]
    num_joints = model.nu
    for world in range(env.num_envs):
        data = forwarded(env, world)
        site = model.site(env.task.imu_site).id
        rotation = data.site_xmat[site].reshape(3, 3)
        velocity = np.zeros(6)
        mujoco.mj_objectVelocity(model, data, mujoco.mjtObj.mjOBJ_SITE, site, velocity, 1)
        policy = env.obs["policy"][world].numpy()
        np.testing.assert_allclose(policy[:3], rotation.T @ [0, 0, -1], atol=1e-5)
        np.testing.assert_allclose(policy[3:6], velocity[:3], atol=1e-5)
        joints = data.qpos[7:] - model.key("default").qpos[7:]
        np.testing.assert_allclose(policy[9 : 9 + num_joints], joints, atol=1e-5)
        np.testing.assert_allclose(policy[9 + num_joints : 9 + 2 * num_joints], data.qvel[6:], atol=1e-4)
        extra = env.obs["critic"][world].numpy()[len(policy) :]
        np.testing.assert_allclose(extra[:3], velocity[3:], atol=1e-5)
        assert extra[3] == pytest.approx(data.qpos[2], abs=1e-5)
        heights = [data.site(name).xpos[2] for name in env.task.robot.end_effectors]
        np.testing.assert_allclose(extra[4 + feet : 4 + 2 * feet], heights, atol=1e-5)


@every_task
def test_foot_contact_is_mujocos(task):
    env, _ = played(task, num_envs=16)
    state = env.physics.state
    qpos = state.qpos.clone()
    qpos[:8, 2] += 0.5  # half of them in the air
    env.physics.set_state(torch.arange(16) < 8, qpos, state.qvel.clone())
    contact = env.task._foot_contact(env.physics.state)
    assert contact.any()
    assert not contact.all()
    model = env.physics.model
    for world in range(env.num_envs):
        data = forwarded(env, world)
        force = np.zeros(6)
        for foot, geoms in enumerate(env.task.foot_geoms):
            total = 0.0
            for number, pair in enumerate(data.contact.geom):
                mujoco.mj_contactForce(model, data, number, force)
                total += force[0] * any(model.geom(name).id in pair for name in geoms)
            assert contact[world, foot].item() == (total > 0)


def test_commands_are_uniform_and_some_stand():
    env = make_env("go1_velocity", num_envs=20_000, device=CPU, seed=3)
    command = env._memory["command"].double()
    standing = (command == 0).all(-1)
    assert standing.double().mean().item() == pytest.approx(0.1, abs=0.01)
    unit = command[~standing] / torch.tensor([1.0, 0.6, 1.0])
    assert unit.abs().max() <= 1 + 1e-6
    for column in unit.T:
        quantiles = torch.quantile(column, torch.linspace(0, 1, 11, dtype=torch.float64))
        np.testing.assert_allclose(quantiles, np.linspace(-1, 1, 11), atol=0.04)
    assert torch.corrcoef(unit.T).fill_diagonal_(0).abs().max() < 0.03


def test_commands_change_every_five_seconds_on_average():
    env = make_env("go1_velocity", num_envs=2000, device=CPU)
    random = WorldRandom(0, 2000, CPU)
    step = torch.zeros(2000, dtype=torch.int64)
    memory, changes = dict(env._memory), 0
    for _ in range(100):
        step = step + 1
        episode = Episode(step, memory, random.draws(step), env.parameters)
        later = env.task.remember(env.physics.state, episode, torch.zeros(2000, 12))
        changes += (later["command"] != memory["command"]).any(-1).sum().item()
        memory = later
    expected = 2000 * 100 * 0.02 / 5.0  # a Poisson process; standing after standing is 1 % of the changes
    assert changes == pytest.approx(0.99 * expected, rel=0.12)


@every_task
def test_a_tilted_base_ends_the_episode(task):
    env = make_env(task, num_envs=2, device=CPU, seed=2)
    qpos = env.physics.state.qpos.clone()
    qpos[1, 2] += 1.0
    qpos[1, 3:7] = torch.tensor([0.5**0.5, 0.5**0.5, 0, 0])  # on its side, in the air
    env.physics.set_state(torch.tensor([False, True]), qpos, torch.zeros_like(env.physics.state.qvel))
    result = env.step(torch.zeros(2, env.spec.action_dim))
    assert result.terminated.tolist() == [False, True]
    assert result.metrics["fallen"].tolist() == [0, 1]


def test_a_base_on_the_ground_ends_the_episode():
    env = make_env("go1_velocity", num_envs=2, device=CPU, seed=2)
    qpos = env.physics.state.qpos.clone()
    qpos[1, 2] = 0.035  # the trunk's box is 4 cm high to either side
    qpos[1, 7:] = torch.tensor([0.0, 3.1, -0.9] * 4)  # the legs above the back
    env.physics.set_state(torch.tensor([False, True]), qpos, torch.zeros_like(env.physics.state.qvel))
    outcome = env.task.outcome(env.physics.state, env._episode(), torch.zeros(2, 12))
    assert outcome.terminated.tolist() == [False, True]


@every_task
def test_reward_is_the_hand_calculation(task):
    env, _ = played(task, num_steps=20)
    memory = {name: value.double().numpy() for name, value in env._memory.items()}
    action = torch.full((env.num_envs, env.spec.action_dim), 0.1)
    # So that the state which was judged stays.
    env._rewind, env._start = lambda done: None, lambda done, states, last: env.obs
    result = env.step(action)
    state, model, weight = env.physics.state, env.physics.model, env.parameters
    for world in range(env.num_envs):
        data = forwarded(env, world)
        site = model.site(env.task.imu_site).id
        velocity = np.zeros(6)
        mujoco.mj_objectVelocity(model, data, mujoco.mjtObj.mjOBJ_SITE, site, velocity, 1)
        turn, linear = velocity[:3], velocity[3:]
        command = memory["command"][world]
        error = np.linalg.norm(command[:2] - linear[:2])
        up = data.site_xmat[site].reshape(3, 3)[2]
        pose = ((data.qpos[7:] - model.key("default").qpos[7:]) ** 2).sum()
        expected = {
            "track_linear": np.exp(-((error / 0.5) ** 2)),
            "track_turn": np.exp(-(((command[2] - turn[2]) / 0.5) ** 2)),
            "vertical_velocity": linear[2] ** 2,
            "tilt_rate": (turn[:2] ** 2).sum(),
            "orientation": (up[:2] ** 2).sum(),
            "pose": pose * (1.0 if command.any() else 5.0),
            "power": np.abs(data.actuator_force * data.qvel[6:]).sum(),
            "torque": (data.actuator_force**2).sum(),
            "action_rate": ((0.1 - memory["last_action"][world]) ** 2).sum(),
        }
        for name, value in expected.items():
            ours = result.metrics[f"reward/{name}"][world].item()
            a_second = weight[f"{name}_weight"][world].item() * value
            assert ours == pytest.approx(0.02 * a_second, rel=1e-4, abs=1e-7), name
        assert result.metrics["tracking_error_m_s"][world].item() == pytest.approx(error, rel=1e-4)
    assert state.qpos.isfinite().all()


def test_terms_by_hand():
    contact = torch.tensor([[True, True, False], [True, False, True]])
    air = torch.tensor([[0.3, 0.0, 0.9], [0.1, 0.2, 0.7]], dtype=torch.float64)
    # First world: 0.3 - 0.2. Second: 0.1 - 0.2, and 0.7 capped at 0.5, less 0.2.
    np.testing.assert_allclose(locomotion.step_air_time(air, contact, 0.2, 0.5), [0.1, 0.2])
    np.testing.assert_allclose(
        locomotion.next_air_time(air, contact, 0.02), [[0, 0, 0.92], [0, 0.22, 0]], atol=1e-15
    )
    speed = torch.tensor([[3.0, 4.0, 9.0], [1.0, 0.0, 0.0], [5.0, 5.0, 5.0]]).expand(2, 3, 3)
    np.testing.assert_allclose(locomotion.slip(speed, contact), [26.0, 75.0])
    joints, low, high = torch.tensor([[-1.5, 0.0, 2.25]]), torch.tensor([-1.0] * 3), torch.tensor([2.0] * 3)
    np.testing.assert_allclose(locomotion.beyond_limits(joints, low, high), [0.75])
    power = locomotion.mechanical_power(torch.tensor([[2.0, -3.0]]), torch.tensor([[-1.0, -2.0]]))
    np.testing.assert_allclose(power, [8.0])


@every_task
@pytest.mark.parametrize(
    "backend",
    ["mujoco", pytest.param("warp", marks=pytest.mark.slow), pytest.param("mjx", marks=pytest.mark.slow)],
)
def test_stays_finite(task, backend):
    env = make_env(task, backend=backend, num_envs=4, device=CPU)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        result = env.step(2 * torch.rand(4, env.spec.action_dim, generator=generator) - 1)
        assert result.reward.isfinite().all()
    metrics = env.pop_metrics()
    assert metrics["physics/broken"] == 0
