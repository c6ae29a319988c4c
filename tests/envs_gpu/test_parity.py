"""Every engine against the referee, C MuJoCo, over every task: one control step at a time, and freely.

One step: at each of 100 control steps the engine starts from the referee's state, so that errors cannot grow
and the tolerance is that of float32. Freely: both run on for 100 control steps under the same actions. Bodies
in contact are chaotic, no tolerance at the end would say anything; so a control group runs along, the referee
itself with its state off by one float32 bit before every step, and the engine's worlds may be no further from
the referee than a stated multiple of the control group's.

In float64, with the capsule's frame as in `envs_gpu.physics._capsule_frame`, MJX and C agree within 1e-13
after a control step of Ant from every one of 800 states, so what is left here is float32.

Letters: T steps, N worlds.
"""

import functools
from typing import NamedTuple

import mujoco
import pytest
import torch
from torch import Tensor

from envs_gpu.physics import BACKENDS
from envs_gpu.physics.base import PhysicsOptions
from envs_gpu.random import WorldRandom
from envs_gpu.tasks import TASKS
from envs_gpu.tasks.base import Episode

CPU = torch.device("cpu")
NUM_STEPS = 100
FLOAT32_EPS = 2.0**-23
NUM_WORLDS = {"warp": 64, "newton": 64, "mjx": 8, "mjx-warp": 8}
ENGINES = ["warp", "newton", "mjx", pytest.param("mjx-warp", marks=pytest.mark.slow)]

# Found with Newton 1.8 (or the engine that is named) and not explained yet: further from the referee than
# float32 accounts for. The numbers are the most that one control step added, to positions and to velocities.
NOT_EXPLAINED = {
    # 9 to 15 % of the steps are over 1e-4 rad/s off. Warp's contacts are C's; more iterations do not help.
    ("go1_getup", "warp"): "4e-4 m or rad and 2 m/s or rad/s",
    ("go1_getup", "mjx"): "9e-2 m or rad and 7 m/s or rad/s",
    ("half_cheetah", "newton"): "7e-5 m or rad and 8e-3 m/s or rad/s",
    ("inverted_double_pendulum", "newton"): "7e-6 m or rad and 1e-4 m/s or rad/s",
    ("inverted_pendulum", "newton"): "3e-6 m or rad and 6e-5 m/s or rad/s",
    ("reacher", "newton"): "2e-6 m or rad and 1e-5 m/s or rad/s",
    ("swimmer", "newton"): "2e-6 m or rad and 3e-5 m/s or rad/s",
}
# A height field is a row of prisms, one contact each. C keeps all of them, Warp and MJX some, so that another
# force acts wherever a geom touches two cells (tests/envs_gpu/test_rough.py shows both: fewer contacts, and
# one step as on flat ground where no geom touches two). The numbers are as above.
OTHER_CONTACTS = {
    ("go1_velocity_rough", engine): "up to 0.2 m or rad and 20 m/s or rad/s"
    for engine in ("warp", "mjx", "mjx-warp")
}
READS_TEXT = {"newton"}
"""Engines that read the scene as MJCF, which has six digits: their referee reads the same text."""


class Tolerance(NamedTuple):
    """What one control step may add."""

    qpos: float = 1e-6
    """m and rad; float32's spacing is 2.4e-7 between 2 and 4."""
    qvel: float = 1e-6
    """m/s and rad/s."""
    exceptions: float = 0.0
    """Share of the steps that may exceed them."""


# Ant's ankles reach 1e3 rad/s^2, of which float32 keeps seven digits at each of 20 Runge-Kutta stages. And
# where a contact sets in its force jumps, by its damping times the speed: a foot within 1e-7 m of the margin
# at one of the stages can touch in one engine and not in the other (seen in 1 step of 6,400, 4e-2 rad/s).
ANT = Tolerance(qpos=1e-6, qvel=5e-5, exceptions=1e-3)
TOLERANCES = {
    ("ant", "warp"): ANT,
    ("ant", "mjx-warp"): ANT,
    # Newton holds masses, inertias and frames in float32: the model itself is a bit off, not only the state.
    ("ant", "newton"): Tolerance(qpos=3e-6, qvel=1e-4),
    # MJX ends Newton's method when the cost, a float32 sum, falls no further, which can be before the forces
    # are right to more than four digits: tighter solver tolerances change no bit of it, float64 removes it.
    ("ant", "mjx"): Tolerance(qpos=2e-5, qvel=1e-3, exceptions=2e-3),
}
# How much further than the control group's worlds may be: the median, and of many worlds the 90th percentile.
# Measured with Ant: 1.9 at most (warp), 7 (mjx, of 8 worlds, for the reason above).
CONTROL_GROUP_FACTOR = {"warp": 3.0, "newton": 3.0, "mjx-warp": 5.0, "mjx": 15.0}


class Path(NamedTuple):
    """What the referee did: `[T, N, ...]`, states before and after each control step."""

    actions: Tensor
    before: tuple[Tensor, Tensor]
    after: tuple[Tensor, Tensor]


@functools.cache
def make_task(name, as_text=False):
    task = TASKS.get(name)()
    scene = task.scene()
    model = mujoco.MjModel.from_xml_string(scene.to_xml()) if as_text else scene.compile()
    task.bind(model, CPU)
    return task, model


def build(engine, model, num_worlds, mjcf=""):
    name, _, impl = engine.partition("-")
    return BACKENDS.get(name)(model, num_worlds, CPU, PhysicsOptions(mjx_impl=impl or "jax", mjcf=mjcf))


def skip_unsupported(name, engine):
    if reason := TASKS.get(name).unsupported.get(engine):
        pytest.skip(reason)
    if apart := (NOT_EXPLAINED | OTHER_CONTACTS).get((name, engine)):
        pytest.xfail(f"{engine} is {apart} off in one control step")


def restart(physics, qpos, qvel):
    physics.set_state(torch.ones(physics.num_worlds, dtype=torch.bool), qpos, qvel)


def snapshot(physics):
    return physics.state.qpos.double().clone(), physics.state.qvel.double().clone()


def rounded(values, generator=None):
    """As float32 has it; with a generator, off by up to one bit more."""
    if generator is not None:
        noise = 2 * torch.rand(values.shape, generator=generator, dtype=torch.float64) - 1
        values = values * (1 + FLOAT32_EPS * noise)
    return values.float().double()


@functools.cache
def referee_path(name, noise_seed=None, as_text=False):
    """64 worlds of the referee under random actions, its state rounded to float32 before every step."""
    task, model = make_task(name, as_text)
    num_worlds = max(NUM_WORLDS.values())
    referee = build("mujoco", model, num_worlds)
    restart(referee, *task.initial_state(Episode.first(WorldRandom(0, num_worlds, CPU))))
    generator = torch.Generator().manual_seed(1)
    noise = None if noise_seed is None else torch.Generator().manual_seed(noise_seed)
    low, high = task.action_low, task.action_high
    actions, before, after = [], [], []
    for _ in range(NUM_STEPS):
        restart(referee, *(rounded(values, noise) for values in snapshot(referee)))
        before.append(snapshot(referee))
        action = low + (high - low) * torch.rand(num_worlds, len(low), generator=generator)
        referee.step(task.control(action), task.substeps)
        actions.append(action)
        after.append(snapshot(referee))
    columns = (tuple(map(torch.stack, zip(*states, strict=True))) for states in (before, after))
    return Path(torch.stack(actions), *columns)


def worlds(path, count):
    """The first `count` worlds of a path."""
    return Path(
        path.actions[:, :count],
        *(tuple(x[:, :count] for x in states) for states in (path.before, path.after)),
    )


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", TASKS.names())
def test_one_step_from_every_state_of_the_referee(name, engine):
    task, model = make_task(name)
    skip_unsupported(name, engine)
    num_worlds = NUM_WORLDS[engine]
    path = worlds(referee_path(name, None, engine in READS_TEXT), num_worlds)
    physics = build(engine, model, num_worlds, task.scene().to_xml())
    errors = []
    for step, action in enumerate(path.actions):
        restart(physics, path.before[0][step], path.before[1][step])
        physics.step(task.control(action), task.substeps)
        reached = snapshot(physics)
        errors.append([(x - y[step]).abs().amax(-1) for x, y in zip(reached, path.after, strict=True)])
    qpos, qvel = (torch.stack(column) for column in zip(*errors, strict=True))  # [T, N]
    tolerance = TOLERANCES.get((name, engine), Tolerance())
    exceeding = ((qpos > tolerance.qpos) | (qvel > tolerance.qvel)).double().mean()
    assert exceeding <= tolerance.exceptions, (
        f"{exceeding:.1e} of the steps, {qpos.max():.1e}, {qvel.max():.1e}"
    )


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", TASKS.names())
def test_a_hundred_steps_no_further_than_rounding_takes_the_referee(name, engine):
    task, model = make_task(name)
    skip_unsupported(name, engine)
    if (name, engine) == ("ant", "newton"):
        pytest.xfail(
            "a model that is a bit off leaves sooner than the control group, whose state alone is off"
        )
    num_worlds = NUM_WORLDS[engine]
    path, control_group = (
        worlds(referee_path(name, seed, engine in READS_TEXT), num_worlds) for seed in (None, 2)
    )
    physics = build(engine, model, num_worlds, task.scene().to_xml())
    restart(physics, path.before[0][0], path.before[1][0])
    for step, action in enumerate(path.actions):
        physics.step(task.control(action), task.substeps)
        if (step + 1) % 10:
            continue
        referee = path.after[0][step]
        ours = (physics.state.qpos.double() - referee).abs().amax(-1)  # [N]
        theirs = (control_group.after[0][step] - referee).abs().amax(-1)
        for quantile in (0.5, 0.9) if num_worlds >= 32 else (0.5,):
            allowed = 1e-6 + CONTROL_GROUP_FACTOR[engine] * theirs.quantile(quantile)
            assert ours.quantile(quantile) <= allowed, f"step {step + 1}, quantile {quantile}"
