"""The cart, the pole and the smooth reward that both cartpole tasks share.

Source: Tassa et al. 2018, "DeepMind Control Suite", domain cartpole; dimensions, damping, reset and reward
are those of its `balance` and `swingup` tasks.
"""

from __future__ import annotations

import mujoco
import torch
from torch import Tensor

from envs_gpu.observation import ObservationTerm
from envs_gpu.parameters import Parameter
from envs_gpu.physics.base import PhysicsState
from envs_gpu.tasks.base import Episode, Outcome, Task
from envs_gpu.terms.stage import add_stage
from envs_gpu.terms.tolerance import gaussian_tolerance, quadratic_tolerance

RAIL_M = 1.8
NUM_MARKS, MARK_M = 17, 0.25


class Cartpole(Task):
    """Observation `policy` `[N, 5]`."""

    parameters = (
        Parameter("position_margin_m", 2.0, "m", "distance from the middle that halves the reward", low=1e-3),
        Parameter("velocity_margin_rad_s", 5.0, "rad/s", "speed of the pole that does the same", low=1e-3),
    )
    substeps = 1
    max_episode_steps = 1000

    def scene(self) -> mujoco.MjSpec:
        spec = mujoco.MjSpec()
        spec.modelname = "cartpole"
        spec.option.timestep = 0.01
        spec.option.integrator = mujoco.mjtIntegrator.mjINT_RK4
        spec.option.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_CONTACT)
        world = spec.worldbody
        add_stage(spec, floor_z_m=-0.3)
        world.add_camera(name="track", pos=(0, -5, 1.3), xyaxes=(1, 0, 0, 0, 0.1, 1))
        _add_scale(world)
        world.add_geom(
            name="rail",
            type=mujoco.mjtGeom.mjGEOM_CAPSULE,
            fromto=(-RAIL_M - 0.2, 0.07, 1, RAIL_M + 0.2, 0.07, 1),
            size=(0.02, 0, 0),
            rgba=(0.5, 0.5, 0.6, 1),
        )
        cart = world.add_body(name="cart", pos=(0, 0, 1))
        cart.add_joint(
            name="slider",
            type=mujoco.mjtJoint.mjJNT_SLIDE,
            axis=(1, 0, 0),
            limited=True,
            range=(-RAIL_M, RAIL_M),
            solref_limit=(0.08, 1),
            damping=5e-4,
        )
        box, capsule = mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_CAPSULE
        # This camera moves with the cart: the pole stays in the middle of the picture, and the marks behind
        # the rail show where the cart is.
        cart.add_camera(name="pole", pos=(0, -5, 0.42), xyaxes=(1, 0, 0, 0, 0, 1), fovy=14.5)
        cart.add_geom(name="cart", type=box, size=(0.2, 0.15, 0.1), mass=1, rgba=(0.2, 0.4, 0.7, 1))
        pole = cart.add_body(name="pole")
        hinge = mujoco.mjtJoint.mjJNT_HINGE
        pole.add_joint(name="hinge", type=hinge, axis=(0, 1, 0), damping=2e-6)
        pole.add_geom(
            name="pole",
            type=capsule,
            fromto=(0, 0, 0, 0, 0, 1),
            size=(0.045, 0, 0),
            mass=0.1,
            rgba=(0.8, 0.5, 0.2, 1),
        )
        motor = spec.add_actuator(name="slide", target="slider", trntype=mujoco.mjtTrn.mjTRN_JOINT)
        motor.set_to_motor()
        motor.gear[0] = 10
        motor.ctrllimited, motor.ctrlrange = True, (-1, 1)
        return spec

    def observation(self) -> dict[str, tuple[ObservationTerm, ...]]:
        terms = (
            ObservationTerm("cart_position", 1, lambda state, _: state.qpos[:, :1], "m"),
            ObservationTerm("pole_cosine", 1, lambda state, _: state.qpos[:, 1:].cos(), low=-1.1, high=1.1),
            ObservationTerm("pole_sine", 1, lambda state, _: state.qpos[:, 1:].sin(), low=-1.1, high=1.1),
            ObservationTerm("cart_velocity", 1, lambda state, _: state.qvel[:, :1], "m/s"),
            ObservationTerm("pole_velocity", 1, lambda state, _: state.qvel[:, 1:], "rad/s"),
        )
        return {"policy": terms}

    def outcome(self, state: PhysicsState, episode: Episode, action: Tensor) -> Outcome:
        upright = (state.qpos[:, 1].cos() + 1) / 2
        margin = episode.parameters
        centered = (1 + gaussian_tolerance(state.qpos[:, 0], margin["position_margin_m"])) / 2
        small_control = (4 + quadratic_tolerance(action[:, 0], margin=1)) / 5
        small_velocity = (1 + gaussian_tolerance(state.qvel[:, 1], margin["velocity_margin_rad_s"])) / 2
        reward = upright * small_control * small_velocity * centered
        never = torch.zeros_like(reward, dtype=torch.bool)
        return Outcome({"smooth": reward}, never, {"upright": upright})


def _add_scale(world: mujoco.MjsBody) -> None:
    """Add marks behind the rail, from dark on the left to light on the right; nothing touches them."""
    for mark in range(NUM_MARKS):
        gray = 0.1 + 0.8 * mark / (NUM_MARKS - 1)
        world.add_geom(
            name=f"mark_{mark}",
            type=mujoco.mjtGeom.mjGEOM_BOX,
            pos=((2 * mark + 1 - NUM_MARKS) * MARK_M / 2, 0.3, 0.82),
            size=(MARK_M / 2, 0.02, 0.07),
            rgba=(gray, gray, gray, 1),
            contype=0,
            conaffinity=0,
        )
