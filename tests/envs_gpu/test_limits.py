"""What a robot can reach: limits from the model that real motion stays far below, and that blow-ups break."""

import math

import mujoco
import pytest
import torch

from envs_gpu.draw import Draw
from envs_gpu.guards import GuardOptions
from envs_gpu.limits import reachable
from envs_gpu.make import make_env
from envs_gpu.randomize import Randomization
from envs_gpu.tasks import TASKS

CPU = torch.device("cpu")
PENDULUM = """
<mujoco>
  <compiler angle="radian"/>
  <option gravity="0 0 0"/>
  <worldbody>
    <body>
      <joint name="hinge" type="hinge" axis="0 1 0" {joint}/>
      <geom type="sphere" size="0.01" pos="1 0 0" mass="2"/>
    </body>
  </worldbody>
  <actuator><motor joint="hinge" gear="3" ctrlrange="-1 1" {actuator}/></actuator>
</mujoco>
"""
RANGE = 'range="-1 1"'


def limits(joint=RANGE, actuator="", energy_margin=1.0, duration_s=10.0):
    model = mujoco.MjModel.from_xml_string(PENDULUM.format(joint=joint, actuator=actuator))
    return reachable(model, energy_margin, duration_s)


def test_the_speed_is_that_of_one_stroke_of_the_motor():
    """3 Nm over 2 rad are 6 J, which turn 2 kg at 1 m by sqrt(2 * 6 / 2) rad/s."""
    assert limits().speed.item() == pytest.approx(math.sqrt(6.0), rel=1e-3)
    assert limits(energy_margin=4.0).speed.item() == pytest.approx(2 * math.sqrt(6.0), rel=1e-3)


def test_a_joint_gives_way_at_its_stops_but_not_by_more_than_its_range():
    found = limits()
    assert found.qpos_low.item() == pytest.approx(-1 - 2 - math.pi)
    assert found.qpos_high.item() == pytest.approx(1 + 2 + math.pi)


def test_without_a_range_a_motor_accelerates_until_time_or_damping_stop_it():
    free = limits(joint="")
    assert free.speed.item() == pytest.approx(3.0 / 2.0 * 10.0, rel=1e-3)
    assert limits(joint='damping="0.5"').speed.item() == pytest.approx(3.0 / 0.5, rel=1e-3)
    assert free.qpos_high.item() == mujoco.mjMAXVAL


@pytest.mark.parametrize(
    "unlimited",
    [limits(energy_margin=None), limits(actuator='user="0" forcelimited="false" ctrllimited="false"')],
    ids=["no margin", "a motor of unknown force"],
)
def test_nothing_is_known_of_an_unlimited_motor(unlimited):
    assert unlimited.speed.item() == mujoco.mjMAXVAL


@pytest.mark.parametrize("task", TASKS.names())
def test_robots_stay_far_below_their_limits(task):
    """Under actions that jump between their limits, no joint has a third of the speed that breaks a world."""
    env = make_env(task, backend="mujoco", num_envs=8, device=CPU, seed=1)
    high, generator = torch.tensor(env.spec.action_high), torch.Generator().manual_seed(0)
    fastest = torch.zeros(env.physics.model.nv, dtype=torch.float64)
    for step in range(60):
        if step % 10 == 0:
            action = high * (2 * torch.rand(8, env.spec.action_dim, generator=generator) - 1).sign()
        assert not env.step(action).broken.any()
        fastest = fastest.maximum(env.physics.state.qvel.double().abs().amax(0))
    duration_s = env.task.max_episode_steps * env.task.control_dt
    limit = reachable(env.physics.model, GuardOptions().energy_margin, duration_s)
    assert (fastest / limit.speed).max() < 1 / 3
    env.close()


def test_motors_that_are_far_too_strong_teach_nothing_impossible():
    """Of a half cheetah with 20 to 60 times its strength no step counts in which it is impossibly fast."""
    env = make_env(
        "half_cheetah",
        backend="mujoco",
        num_envs=64,
        device=CPU,
        seed=1,
        randomization=Randomization(gains=Draw(low=20, high=60)),
        guards=GuardOptions(max_broken_share=1.0),
    )
    generator, num_broken = torch.Generator().manual_seed(0), 0
    for _ in range(100):
        result = env.step(2 * torch.rand(64, env.spec.action_dim, generator=generator) - 1)
        kept = ~result.broken
        assert result.final_obs["policy"][kept].abs().max() < 1e3
        assert result.reward[kept].abs().max() < 1e3
        num_broken += int(result.broken.sum())
    assert num_broken > 0
