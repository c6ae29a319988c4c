"""Worlds that differ for good: late controls, other masses and friction, stronger pushes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from envs_gpu.disturbance import Disturbance, DisturbedPhysics
from envs_gpu.make import make_env
from envs_gpu.models import compile_model
from envs_gpu.physics.base import PhysicsOptions, UnsupportedModelError
from envs_gpu.physics.mujoco import MujocoPhysics
from envs_gpu.tasks import TASKS

CPU = torch.device("cpu")
SUBSTEPS, NUM_STEPS = 5, 12


@pytest.fixture(scope="module")
def model():
    return compile_model(TASKS.get("ant")().scene(), "ant")


def start(physics):
    """Everybody in the model's own pose, lifted, and turning."""
    num_worlds, model = physics.num_worlds, physics.model
    qpos = torch.tensor(model.qpos0).repeat(num_worlds, 1)
    qvel = torch.linspace(-1, 1, model.nv, dtype=torch.float64).repeat(num_worlds, 1)
    physics.set_state(torch.ones(num_worlds, dtype=torch.bool), qpos, qvel)
    return physics


def disturbed(model, **changes):
    num_worlds = len(next(iter(changes.values())))
    nothing = Disturbance.none(num_worlds, torch.full((model.nu,), 0.3, dtype=torch.float64))
    tensors = {name: torch.tensor(values, dtype=torch.float64) for name, values in changes.items()}
    disturbance = replace(nothing, **tensors)
    return start(DisturbedPhysics(model, num_worlds, CPU, PhysicsOptions(num_threads=1), disturbance))


def plain(model, num_worlds=1):
    return start(MujocoPhysics(model, num_worlds, CPU, PhysicsOptions(num_threads=1)))


def test_a_delay_shifts_controls_by_timesteps(model):
    delays = [0, 1, 3, 5, 7, 12]
    controls = torch.randn(NUM_STEPS, model.nu, generator=torch.Generator().manual_seed(0)).double()
    late = disturbed(model, delay_s=[delay * model.opt.timestep for delay in delays])
    for control in controls:
        late.step(control.expand(len(delays), -1), SUBSTEPS)
    rest = torch.full((1, model.nu), 0.3, dtype=torch.float64)
    for world, delay in enumerate(delays):
        expected = plain(model)
        for timestep in range(NUM_STEPS * SUBSTEPS):
            sent = timestep - delay
            expected.step(rest if sent < 0 else controls[sent // SUBSTEPS][None], 1)
        np.testing.assert_allclose(late.state.qpos[world], expected.state.qpos[0], rtol=0, atol=1e-9)


def test_a_delay_is_rounded_up(model):
    physics = disturbed(model, delay_s=[0.0, 0.001, 0.01, 0.011])
    assert physics.delay_steps.tolist() == [0, 1, 1, 2]  # of 10 ms


def test_a_world_that_begins_anew_forgets_what_was_sent(model):
    physics = disturbed(model, delay_s=[0.05, 0.05])
    physics.step(torch.ones(2, model.nu), SUBSTEPS)
    qpos, qvel = physics.state.qpos.clone(), physics.state.qvel.clone()
    physics.set_state(torch.tensor([True, False]), qpos, qvel)
    physics.step(torch.ones(2, model.nu), SUBSTEPS)
    assert physics.state.ctrl[:, 0].tolist() == pytest.approx([0.3, 1.0])


def test_masses_and_friction_are_each_worlds_own(model):
    physics = disturbed(model, mass=[1.0, 1.5], friction=[1.0, 0.5])
    fields = physics.world_fields()
    for name in ("body_mass", "body_inertia", "body_subtreemass"):
        np.testing.assert_allclose(fields[name][1], 1.5 * getattr(model, name))
    np.testing.assert_allclose(fields["geom_friction"][1, :, 0], 0.5 * model.geom_friction[:, 0])
    np.testing.assert_allclose(fields["geom_friction"][1, :, 1:], model.geom_friction[:, 1:])
    nominal, control = plain(model), torch.full((2, model.nu), 0.5)
    for _ in range(NUM_STEPS):
        physics.step(control, SUBSTEPS)
        nominal.step(control[:1], SUBSTEPS)
    np.testing.assert_array_equal(physics.state.qpos[0], nominal.state.qpos[0])
    assert (physics.state.qpos[1] - nominal.state.qpos[0]).abs().max() > 1e-3


def test_pushes_are_scaled(model):
    physics = disturbed(model, push=[0.0, 0.5, 1.0])
    before = physics.state.qvel.clone()
    physics.push(torch.tensor([2, 0, 1]), torch.full((3, model.nv), 2.0, dtype=torch.float64))
    assert (physics.state.qvel - before)[:, 0].tolist() == pytest.approx([0.0, 1.0, 2.0])


def test_only_c_mujoco_is_disturbed():
    nothing = Disturbance.none(2, torch.zeros(8, dtype=torch.float64))
    with pytest.raises(UnsupportedModelError, match="take mujoco"):
        make_env("ant", backend="warp", num_envs=2, device=CPU, disturbance=nothing)
