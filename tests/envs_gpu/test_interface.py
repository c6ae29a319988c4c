"""What a task tells robots about its observation and its targets is what it does."""

from dataclasses import replace

import mujoco
import pytest
import torch

from envs_gpu.errors import EnvError
from envs_gpu.interface import Term
from envs_gpu.make import make_env
from envs_gpu.robots import get_robot
from envs_gpu.tasks import TASKS
from envs_gpu.tasks.ant import Ant
from envs_gpu.tasks.go1_velocity import Go1Velocity

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=TASKS.names())
def env(request):
    env = make_env(request.param, num_envs=4, device=CPU, seed=3)
    yield env
    env.close()


def test_the_terms_are_the_observation(env):
    interface = env.interface()
    assert interface.width == env.spec.obs_dims["policy"]
    assert len({term.name for term in interface.terms}) == len(interface.terms)
    asked = sum(term.width for term in interface.terms if term.kind == "command")
    assert len(interface.commands) == asked
    for term in interface.terms:
        assert term.offset is None or term.offset.shape == (term.width,)


def test_the_targets_are_what_control_gives(env):
    targets = env.interface().targets
    low, high = env.task.action_low, env.task.action_high
    generator = torch.Generator().manual_seed(0)
    action = low + (high - low) * torch.rand(200, len(low), generator=generator)
    torch.testing.assert_close(targets.control(action), env.task.control(action).float())


def test_the_last_action_is_where_its_term_says(env):
    action = torch.rand(4, env.spec.action_dim, generator=torch.Generator().manual_seed(1)) - 0.5
    env.reset(3)
    observation = env.step(action).obs["policy"]
    position = 0
    for term in env.interface().terms:
        if term.kind == "last_action":
            torch.testing.assert_close(observation[:, position : position + term.width], action)
        position += term.width


def test_readings_of_a_motion_are_within_the_terms_limits(env):
    """Under random actions, with which robots fall over: what counts as impossible must be that."""
    env.reset(3)
    interface, generator = env.interface(), torch.Generator().manual_seed(2)
    for _ in range(100):
        observation = env.step(torch.rand(4, env.spec.action_dim, generator=generator) * 2 - 1).obs["policy"]
        for term, value in zip(
            interface.terms, observation.split([term.width for term in interface.terms], -1), strict=True
        ):
            reading = value if term.offset is None else value + term.offset
            assert term.low is None or (reading >= term.low).all(), term.name
            assert term.high is None or (reading <= term.high).all(), term.name


def parts(env):
    """Term -> what the env shows of it, as a robot would have measured it."""
    terms = env.interface().terms
    values = env.obs["policy"].split([term.width for term in terms], -1)
    shown = zip(terms, values, strict=True)
    return {term.name: value if term.offset is None else value + term.offset for term, value in shown}


def test_legged_robots_send_what_their_sensors_read():
    env = make_env("go1_velocity", num_envs=2, device=CPU)
    env.step(torch.ones(2, 12))
    seen, state, sensor = parts(env), env.physics.state, env.task.sensor
    expected = {
        "projected_gravity": -state.sensordata[:, sensor["up"]],
        "angular_velocity": state.sensordata[:, sensor["gyro"]],
        "joint_position": state.qpos[:, 7:],
        "joint_velocity": state.qvel[:, 6:],
    }
    for name, value in expected.items():
        torch.testing.assert_close(seen[name], value.float(), msg=name)
    env.close()


def test_floating_bodies_of_gymnasium_say_where_they_are():
    env = make_env("ant", num_envs=2, device=CPU)
    env.step(torch.ones(2, 8))
    seen, state = parts(env), env.physics.state
    torch.testing.assert_close(seen["torso_height"], state.qpos[:, 2:3].float())
    torch.testing.assert_close(seen["torso_orientation"], state.qpos[:, 3:7].float())
    torch.testing.assert_close(seen["joint_position"], state.qpos[:, 7:].float())
    torch.testing.assert_close(seen["torso_velocity"], state.qvel[:, :3].float())
    torch.testing.assert_close(seen["joint_velocity"], state.qvel[:, 6:].float())
    env.close()


def test_servos_have_the_gains_of_the_robots_motors():
    env = make_env("go1_velocity", num_envs=1, device=CPU)
    interface = env.interface()
    assert [servo.joint for servo in interface.servos] == list(env.spec.joint_names)
    for servo in interface.servos:
        motor = get_robot("go1").motor(servo.joint)
        assert (servo.stiffness, servo.damping) == (motor.stiffness, motor.damping)
    env.close()


def test_a_motor_has_no_gains():
    env = make_env("ant", num_envs=2, device=CPU)
    assert {(servo.stiffness, servo.damping) for servo in env.interface().servos} == {(None, None)}
    env.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda task: setattr(task, "control", lambda action: 0.5 * action), "override targets"),
        (
            lambda task: setattr(
                task, "interface", lambda: replace(Ant.interface(task), terms=(Term("all", 7),))
            ),
            "terms of its interface are 7 wide, its observation 105",
        ),
    ],
)
def test_an_interface_that_says_something_else_is_an_error(change, message):
    env = make_env("ant", num_envs=2, device=CPU)
    change(env.task)
    with pytest.raises(EnvError, match=message):
        env.interface()
    env.close()


def test_a_history_and_an_env_of_others():
    env = make_env("cartpole_balance", num_envs=2, device=CPU, observation_history=3)
    assert (env.interface().history, env.interface().width) == (3, 5)
    env.close()
    zoo = make_env("gymnasium/Pendulum-v1", num_envs=2, device=CPU)
    assert [(term.name, term.width) for term in zoo.interface().terms] == [("observation", 3)]
    assert zoo.interface().targets.high.tolist() == list(zoo.spec.action_high)
    zoo.close()


def test_the_gains_are_those_of_the_compiled_model():
    model = Go1Velocity().scene().compile()
    data = mujoco.MjData(model)
    mujoco.mj_resetDataKeyframe(model, data, 0)
    env = make_env("go1_velocity", num_envs=1, device=CPU)
    stiffness, target = env.interface().servos[0].stiffness, data.qpos[7] + 0.1
    data.ctrl[0] = target
    mujoco.mj_forward(model, data)
    assert data.actuator_force[0] == pytest.approx(stiffness * 0.1)
    env.close()
