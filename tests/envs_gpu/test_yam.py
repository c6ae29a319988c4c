"""The YAM's tasks: what they read against C MuJoCo, what they reward by hand, and a grasp that holds."""

import mujoco
import numpy as np
import pytest
import torch

from envs_gpu.make import make_env
from envs_gpu.random import WorldRandom
from envs_gpu.robots import get_robot, robot_model
from envs_gpu.tasks import TASKS
from envs_gpu.tasks.base import Episode
from envs_gpu.terms import manipulation

CPU = torch.device("cpu")
NUM_ARM_JOINTS = 6


def played(task, num_envs=4, num_steps=25, seed=1):
    env = make_env(task, num_envs=num_envs, device=CPU, seed=seed)
    generator = torch.Generator().manual_seed(0)
    for _ in range(num_steps):
        env.step(torch.rand(num_envs, env.spec.action_dim, generator=generator) - 0.5)
    return env


def forwarded(env, world):
    """C MuJoCo's own data of a world's state."""
    data = mujoco.MjData(env.physics.model)
    state = env.physics.state
    data.qpos[:], data.qvel[:] = state.qpos[world].double().numpy(), state.qvel[world].double().numpy()
    data.ctrl[:] = state.ctrl[world].double().numpy()
    mujoco.mj_forward(env.physics.model, data)
    return data


def velocity_of_tool(model, data):
    velocity = np.zeros(6)
    site = model.site("grasp_site").id
    mujoco.mj_objectVelocity(model, data, mujoco.mjtObj.mjOBJ_SITE, site, velocity, 0)
    return velocity[3:]


def judged(env, action):
    """What `action` was worth, in the state that it led to, and the memory before it."""
    memory = {name: value.double().numpy().copy() for name, value in env._memory.items()}
    # So that the state which was judged stays.
    env._rewind, env._start = lambda done: None, lambda done, states, last: env.obs
    return env.step(action), memory


def expected_effort(env, data, action, last_action):
    joints = env.task._num_joints
    low, high = env.physics.model.jnt_range[:joints].T
    position = data.qpos[:joints]
    return {
        "action_rate": -0.02 * ((action - last_action) ** 2).sum(),
        "joint_velocity": -2e-3 * (data.qvel[:joints] ** 2).sum(),
        "torque": -1e-4 * (data.actuator_force**2).sum(),
        "joint_limits": -2.0 * (np.maximum(low - position, 0) + np.maximum(position - high, 0)).sum(),
    }


def assert_rewards(result, world, expected_a_second):
    for name, value in expected_a_second.items():
        ours = result.metrics[f"reward/{name}"][world].item()
        assert ours == pytest.approx(0.02 * value, rel=1e-4, abs=1e-7), name


def test_reach_observes_what_mujoco_says():
    env = played("yam_reach")
    default = [get_robot("yam").default_position(f"joint{i}") for i in range(1, 7)]
    for world in range(env.num_envs):
        data = forwarded(env, world)
        tool, target = data.site("grasp_site").xpos, env._memory["target"][world].numpy()
        expected = (data.qpos - default, data.qvel, target, env._memory["last_action"][world].numpy())
        critic = env.obs["critic"][world].numpy()
        np.testing.assert_allclose(env.obs["policy"][world].numpy(), np.concatenate(expected), atol=1e-4)
        np.testing.assert_array_equal(critic[:21], env.obs["policy"][world].numpy())
        extra = np.concatenate((tool, velocity_of_tool(env.physics.model, data), target - tool))
        np.testing.assert_allclose(critic[21:], extra, atol=1e-5)


def test_reach_rewards_the_hand_calculation():
    env = played("yam_reach")
    action = torch.full((env.num_envs, 6), 0.3)
    result, memory = judged(env, action)
    for world in range(env.num_envs):
        data = forwarded(env, world)
        error = np.linalg.norm(data.site("grasp_site").xpos - memory["target"][world])
        expected = expected_effort(env, data, 0.3, memory["last_action"][world])
        expected |= {"near": 1 - np.tanh(error / 0.25), "precise": 2 * (1 - np.tanh(error / 0.05))}
        assert_rewards(result, world, expected)
        assert result.metrics["distance_m"][world].item() == pytest.approx(error, rel=1e-5)
    assert not result.terminated.any()


def test_reached_is_within_two_centimetres():
    env = make_env("yam_reach", num_envs=2, device=CPU)
    tool = env.task.read(env.physics.state, "tool_position").float()
    env._memory["target"] = tool + torch.tensor([[0.0, 0.019, 0.0], [0.0, 0.021, 0.0]])
    outcome = env.task.outcome(env.physics.state, env._episode(), torch.zeros(2, 6))
    assert outcome.measures["reached"].tolist() == [True, False]


def test_a_sparse_reach_pays_for_reached_targets_alone():
    """With the weights of nearness at zero, what is left beside efforts is the same for every step at the
    target, and nothing anywhere else."""
    sparse = {"near_weight": 0.0, "precise_weight": 0.0, "reached_weight": 5.0, "reached_m": 0.1}
    env = make_env("yam_reach", num_envs=3, device=CPU, task_parameters=sparse)
    tool = env.task.read(env.physics.state, "tool_position").float()
    env._memory["target"] = tool + torch.tensor([[0.0, 0.0, 0.01], [0.0, 0.09, 0.0], [0.11, 0.0, 0.0]])
    reward = env.task.outcome(env.physics.state, env._episode(), torch.zeros(3, 6)).reward
    torch.testing.assert_close(reward["reached"].float(), 0.02 * torch.tensor([5.0, 5.0, 0.0]))
    assert (reward["near"] == 0).all()
    assert (reward["precise"] == 0).all()


def test_targets_are_where_some_posture_puts_the_tool():
    """Inverse kinematics in C MuJoCo, from the default pose, with the maker's own model."""
    env = make_env("yam_reach", num_envs=40, device=CPU, seed=5)
    model = robot_model(get_robot("yam")).compile()
    low, high = (env.task.control(sign * 2 * torch.ones(6)).numpy() for sign in (-1, 1))
    assert (low >= model.jnt_range[:6, 0]).all()
    assert (high <= model.jnt_range[:6, 1]).all()
    targets = env._memory["target"].double().numpy()
    assert (targets[:, 2] > 0.08).all()
    assert np.ptp(targets, axis=0).min() > 0.3  # a room, not a spot
    for target in targets:
        assert min(distance_after_search(model, target, low, high, seed) for seed in range(6)) < 1e-3


def distance_after_search(model, target, low, high, seed):
    """How near to `target` damped least squares bring the tool with joints between `low` and `high`, m."""
    data, site = mujoco.MjData(model), model.site("grasp_site").id
    mujoco.mj_resetDataKeyframe(model, data, 0)
    data.qpos[:6] = np.random.default_rng(seed).uniform(low, high) if seed else data.qpos[:6]
    jacobian = np.zeros((3, model.nv))
    for _ in range(60):
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        error = target - data.site_xpos[site]
        mujoco.mj_jacSite(model, data, jacobian, None, site)
        arm = jacobian[:, :6]
        step = arm.T @ np.linalg.solve(arm @ arm.T + 1e-4 * np.eye(3), error)
        data.qpos[:6] = np.clip(data.qpos[:6] + np.clip(step, -0.3, 0.3), low, high)
    return np.linalg.norm(error)


def test_targets_change_every_three_seconds_on_average():
    env = make_env("yam_reach", num_envs=1000, device=CPU)
    random, step = WorldRandom(0, 1000, CPU), torch.zeros(1000, dtype=torch.int64)
    memory, changes = dict(env._memory), 0
    for _ in range(100):
        step = step + 1
        draws = Episode(step, memory, random.draws(step), env.parameters)
        later, again = (env.task.remember(env.physics.state, draws, torch.zeros(1000, 6)) for _ in range(2))
        assert torch.equal(later["target"], again["target"])
        changes += (later["target"] != memory["target"]).any(-1).sum().item()
        memory = later
    assert changes == pytest.approx(1000 * 100 * 0.02 / 3.0, rel=0.12)  # a Poisson process


def test_lift_observes_what_mujoco_says():
    env = played("yam_lift")
    for world in range(env.num_envs):
        data = forwarded(env, world)
        tool, cube = data.site("grasp_site").xpos, data.body("cube").xpos
        axes = data.body("cube").xmat.reshape(3, 3)
        goal = env._memory["goal"][world].numpy()
        default = [0, 1.95, 1.65, -1.27, 0, 0, 0.0375, -0.0375]
        expected = (data.qpos[:8] - default, data.qvel[:8], cube, axes[:, 0], axes[:, 1])
        expected += (cube - tool, goal, goal - cube, env._memory["last_action"][world].numpy())
        np.testing.assert_allclose(env.obs["policy"][world].numpy(), np.concatenate(expected), atol=1e-4)
        extra = np.concatenate((data.qvel[8:], velocity_of_tool(env.physics.model, data)))
        np.testing.assert_allclose(env.obs["critic"][world].numpy()[41:-2], extra, atol=1e-4)


def test_lift_rewards_the_hand_calculation():
    """In the air, at rest on the table, and half lifted; the goal near and far."""
    env = make_env("yam_lift", num_envs=3, device=CPU, seed=2)
    qpos = env.physics.state.qpos.clone()
    qpos[0, 8:11] = torch.tensor([0.35, 0.0, 0.2])
    qpos[2, 8:11] = torch.tensor([0.45, 0.1, 0.045])
    env.place(torch.ones(3, dtype=torch.bool), qpos, torch.zeros_like(env.physics.state.qvel))
    env._memory["goal"][0] = torch.tensor([0.35, 0.03, 0.2])
    result, memory = judged(env, torch.full((3, 7), -0.2))
    for world in range(3):
        data = forwarded(env, world)
        cube = data.body("cube").xpos
        lifted = np.clip((cube[2] - 0.02) / 0.04, 0, 1)
        to_tool = np.linalg.norm(cube - data.site("grasp_site").xpos)
        to_goal = np.linalg.norm(cube - memory["goal"][world])
        expected = expected_effort(env, data, -0.2, memory["last_action"][world])
        expected |= {
            "reach": 1.0 * (1 - np.tanh(to_tool / 0.1)),
            "pinch": 0.0,
            "lift": 4.0 * lifted,
            "carry": 6.0 * lifted * (1 - np.tanh(to_goal / 0.2)),
            "precise": 4.0 * lifted * (1 - np.tanh(to_goal / 0.05)),
            "lost": 0.0,
        }
        assert_rewards(result, world, expected)
    assert result.metrics["lifted"].tolist() == [1.0, 0.0, 0.0]


def test_a_cube_off_the_table_ends_the_episode():
    env = make_env("yam_lift", num_envs=3, device=CPU, seed=2)
    qpos = env.physics.state.qpos.clone()
    qpos[1, 8], qpos[2, 10] = 0.61, -0.1
    env.place(torch.ones(3, dtype=torch.bool), qpos, torch.zeros_like(env.physics.state.qvel))
    outcome = env.task.outcome(env.physics.state, env._episode(), torch.zeros(3, 7))
    assert outcome.terminated.tolist() == [False, True, True]
    assert outcome.reward["lost"].tolist() == [0.0, -1.0, -1.0]


def test_only_the_gripper_touches():
    """The arm and the fingers touch nothing of each other, wherever they are."""
    model = TASKS.get("yam_lift")().scene().compile()
    data, rng = mujoco.MjData(model), np.random.default_rng(0)
    names = set()
    for _ in range(300):
        data.qpos[:8] = rng.uniform(*model.jnt_range[:8].T)
        data.qpos[8:11] = data.site("grasp_site").xpos
        mujoco.mj_forward(model, data)
        names |= {tuple(sorted(model.geom(geom).name for geom in pair)) for pair in data.contact.geom}
    touched = {frozenset(pair) - {"table", "cube"} for pair in names}
    assert all(len(rest) <= 1 for rest in touched)
    assert frozenset() in touched  # the cube, the table
    assert {name for rest in touched for name in rest} <= {
        *(f"{finger}_down_pad_{i}" for finger in ("lf", "rf") for i in range(4)),
        "link6_1_collision",
        "link6_3_collision",
    }


def test_robot_weighs_what_it_weighs():
    ours = TASKS.get("yam_lift")().scene().compile()
    theirs = robot_model(get_robot("yam")).compile()
    for field in ("body_mass", "body_inertia"):
        np.testing.assert_array_equal(getattr(ours, field)[:-1], getattr(theirs, field), err_msg=field)


def servo_targets(model, qpos, position, closing_axis):
    """Servo targets of the arm that hold the tool still at `position`, looking down; rad."""
    data, site = mujoco.MjData(model), model.site("grasp_site").id
    data.qpos[:] = qpos
    jacobian = np.zeros((6, model.nv))
    for _ in range(100):
        mujoco.mj_forward(model, data)
        axes = data.site_xmat[site].reshape(3, 3)
        turn = 0.5 * (np.cross(axes[:, 2], [0, 0, -1]) + np.cross(axes[:, 1], closing_axis))
        error = np.concatenate((position - data.site_xpos[site], turn))
        mujoco.mj_jacSite(model, data, jacobian[:3], jacobian[3:], site)
        arm = jacobian[:, :6]
        step = arm.T @ np.linalg.solve(arm @ arm.T + 1e-4 * np.eye(6), error)
        data.qpos[:6] += step.clip(-0.1, 0.1)
    assert np.abs(error).max() < 0.01
    mujoco.mj_forward(model, data)
    return data.qpos[:6] + data.qfrc_bias[:6] / model.actuator_gainprm[:6, 0]


def grasp_and_lift(backend):
    """The cube's height and its place in the hand, 0.5 s after it was raised and 2 s later."""
    env = make_env("yam_lift", backend=backend, num_envs=4, device=CPU, seed=0)
    task, model, state = env.task, env.physics.model, env.physics.state
    start = state.qpos.double().numpy().copy()
    cube = start[:, 8:11]
    sides = np.empty((4, 3, 3))
    for world in range(4):
        mujoco.mju_quat2Mat(sides[world].reshape(-1), start[world, 11:])
    # The cube's side, of the four, that the gripper turns to with the least turn.
    candidates = np.concatenate((sides[..., 0], sides[..., 1], -sides[..., 0], -sides[..., 1])).reshape(
        4, 4, 3
    )
    axes = candidates[candidates[..., 1].argmax(0), range(4)]

    def go(above_m, opening_m, seconds):
        points = cube + np.array([0.0, 0.0, above_m])
        targets = [
            [*servo_targets(model, *where), opening_m] for where in zip(start, points, axes, strict=True)
        ]
        action = (torch.tensor(np.array(targets)).float() - task._neutral_target) / task._action_scale
        for _ in range(round(seconds * 50)):
            assert not env.step(action).terminated.any()
        in_hand = state.qpos[:, 8:11] - state.sensordata[:, task.sensor["tool_position"]]
        return state.qpos[:, 10].clone(), in_hand.clone()

    for above_m, opening_m, seconds in ((0.08, 0.0375, 0.8), (0.0, 0.0375, 0.8), (0.0, 0.0, 0.5)):
        go(above_m, opening_m, seconds)
    return go(0.12, 0.0, 0.5), go(0.12, 0.0, 2.0)


@pytest.mark.parametrize("backend", ["mujoco", pytest.param("warp", marks=pytest.mark.slow)])
def test_a_grasp_holds_for_two_seconds(backend):
    (raised_m, before), (kept_m, after) = grasp_and_lift(backend)
    assert (raised_m > 0.12).all()
    assert (kept_m > 0.12).all()
    assert (after - before).norm(dim=-1).max() < 4e-3  # soft friction creeps by a millimetre a second


def test_terms_by_hand():
    point, other = torch.tensor([[1.0, 2.0, 2.0]]), torch.zeros(1, 3)
    assert manipulation.distance(point, other).item() == 3.0
    np.testing.assert_allclose(
        manipulation.closeness(torch.tensor([0.0, 0.1, 10.0]), 0.1), [1.0, 1 - np.tanh(1.0), 0.0], atol=1e-7
    )
    np.testing.assert_allclose(
        manipulation.progress(torch.tensor([-1.0, 1.0, 1.5, 9.0]), 1.0, 2.0), [0.0, 0.0, 0.5, 1.0]
    )
    left = torch.tensor([[2.0, 9.0, 9.0, 3.0, 9.0, 9.0], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    right = torch.tensor([[-4.0, 9.0, 9.0, 0.0, 0.0, 0.0], [7.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    np.testing.assert_allclose(manipulation.pinch_force(left, right), [4.0, 0.0])


def test_rotation_columns_are_mujocos():
    rng, matrix = np.random.default_rng(0), np.zeros(9)
    quaternion = rng.normal(size=(50, 4))
    ours = manipulation.rotation_columns(torch.tensor(quaternion))
    for row, q in zip(ours, quaternion, strict=True):
        mujoco.mju_quat2Mat(matrix, q / np.linalg.norm(q))
        np.testing.assert_allclose(row.reshape(2, 3), matrix.reshape(3, 3).T[:2], atol=1e-12)
    assert torch.equal(ours, manipulation.rotation_columns(torch.tensor(-quaternion)))
