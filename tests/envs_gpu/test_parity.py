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

from envs_gpu.parity import DEVIATIONS, READS_TEXT, Tolerance, rounded
from envs_gpu.physics import BACKENDS
from envs_gpu.physics.base import PhysicsOptions
from envs_gpu.random import WorldRandom
from envs_gpu.tasks import TASKS
from envs_gpu.tasks.base import Episode

CPU = torch.device("cpu")
NUM_STEPS = 100
NUM_WORLDS = {"warp": 64, "newton": 64, "mjx": 8, "mjx-warp": 8}
ENGINES = ["warp", "newton", "mjx", pytest.param("mjx-warp", marks=pytest.mark.slow)]

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
    if (known := DEVIATIONS.get((name, engine))) and not known.explained:
        pytest.xfail(known.reason)


def restart(physics, qpos, qvel):
    physics.set_state(torch.ones(physics.num_worlds, dtype=torch.bool), qpos, qvel)


def snapshot(physics):
    return physics.state.qpos.double().clone(), physics.state.qvel.double().clone()


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
    known = DEVIATIONS.get((name, engine))
    tolerance = known.tolerance if known else Tolerance()
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
