"""Every engine against the referee, C MuJoCo, over every task: one control step at a time, and freely.

One step: at each of 100 control steps the engine starts from the referee's state, so that errors cannot grow
and the tolerance is that of float32. Freely: both run on for 100 control steps under the same actions. Bodies
in contact are chaotic, there no tolerance at the end says anything; so a control group runs along, the referee
itself with its state rounded at random in the last float32 bit before every step, and the engine's worlds may
be no further from the referee than a stated multiple of the control group's.

In float64, with the capsule's frame as in `envs_gpu.physics._capsule_frame`, MJX and C agree within 1e-13 after
a control step of Ant at every one of 800 states, so what is left here is float32. Letters: T steps, N worlds.
"""

import functools
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from envs_gpu.physics import BACKENDS
from envs_gpu.physics.base import PhysicsOptions
from envs_gpu.random import WorldRandom
from envs_gpu.tasks import TASKS

CPU = torch.device("cpu")
NUM_STEPS = 100
FLOAT32_EPS = 2.0**-23
NUM_WORLDS = {"warp": 64, "mjx": 8, "mjx-warp": 8}
ENGINES = ["warp", "mjx", pytest.param("mjx-warp", marks=pytest.mark.slow)]


class Tolerance(NamedTuple):
    """What one control step may add."""

    qpos: float = 1e-6
    """m and rad; float32's spacing is 2.4e-7 between 2 and 4."""
    qvel: float = 1e-6
    """m/s and rad/s."""
    exceptions: float = 0.0
    """Share of the steps that may exceed both."""


TOLERANCES = {
    # The solver's forces are good to 1e-6 of qacc, which reaches 1e3 rad/s^2: 1e-4 rad/s in 0.05 s at worst.
    # Exceptions: MuJoCo's contact force jumps where a contact sets in, by its damping times the speed. Where a
    # leg is within 1e-6 m of the margin at one of the 20 Runge-Kutta stages, one engine has the contact and the
    # other does not. With Warp, 1 step of 6,400 had that.
    "ant": Tolerance(qpos=2e-6, qvel=1e-4, exceptions=5e-3),
}
CONTROL_GROUP_FACTOR = 10.0


class Path(NamedTuple):
    """What the referee did: `[T, N, ...]`, states before and after each control step."""

    actions: Tensor
    before: tuple[Tensor, Tensor]
    after: tuple[Tensor, Tensor]


@functools.cache
def make_task(name):
    task = TASKS.get(name)()
    model = task.scene().compile()
    task.bind(model, CPU)
    return task, model


def build(engine, model, num_worlds):
    name, _, impl = engine.partition("-")
    return BACKENDS.get(name)(model, num_worlds, CPU, PhysicsOptions(mjx_impl=impl or "jax"))


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
def referee_path(name, noise_seed=None):
    """64 worlds of the referee under random actions, its state rounded to float32 before every step."""
    task, model = make_task(name)
    num_worlds = max(NUM_WORLDS.values())
    referee = build("mujoco", model, num_worlds)
    restart(referee, *task.initial_state(WorldRandom(0, num_worlds, CPU)))
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
    return Path(torch.stack(actions), *(tuple(map(torch.stack, zip(*states))) for states in (before, after)))


def worlds(path, count):
    """The first `count` worlds of a path."""
    return Path(
        path.actions[:, :count], *(tuple(x[:, :count] for x in states) for states in (path.before, path.after))
    )


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", TASKS.names())
def test_one_step_from_every_state_of_the_referee(name, engine):
    task, model = make_task(name)
    num_worlds = NUM_WORLDS[engine]
    path = worlds(referee_path(name), num_worlds)
    physics = build(engine, model, num_worlds)
    errors = []
    for step, action in enumerate(path.actions):
        restart(physics, path.before[0][step], path.before[1][step])
        physics.step(task.control(action), task.substeps)
        reached = snapshot(physics)
        errors.append([(x - y[step]).abs().amax(-1) for x, y in zip(reached, path.after, strict=True)])
    qpos, qvel = (torch.stack(column) for column in zip(*errors, strict=True))  # [T, N]
    tolerance = TOLERANCES.get(name, Tolerance())
    exceeding = (qpos > tolerance.qpos) | (qvel > tolerance.qvel)
    print(name, engine, [f"{e.flatten().quantile(q):.1e}" for e in (qpos, qvel) for q in (0.5, 0.99, 0.999, 1.0)], exceeding.double().mean())
    assert exceeding.double().mean() <= tolerance.exceptions, f"{qpos.max():.1e} {qvel.max():.1e}"


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", TASKS.names())
def test_a_hundred_steps_no_further_than_rounding_takes_the_referee_itself(name, engine):
    task, model = make_task(name)
    num_worlds = NUM_WORLDS[engine]
    path, control = (worlds(referee_path(name, seed), num_worlds) for seed in (None, 2))
    physics = build(engine, model, num_worlds)
    restart(physics, path.before[0][0], path.before[1][0])
    for step, action in enumerate(path.actions):
        physics.step(task.control(action), task.substeps)
        if step + 1 not in (10, 20, 30, 50, 75, 100): continue
        expected = path.after[0][step]
        ours = (physics.state.qpos.double() - expected).abs().amax(-1)  # [N]
        allowed = (control.after[0][step] - expected).abs().amax(-1)
        print(name, engine, step+1, [f"{e.quantile(q):.1e}" for e in (ours, allowed) for q in (0.5,.75, 0.9, 1.0)])
