"""Keep a pole on a pole upright on a cart: Gymnasium's InvertedDoublePendulum-v5."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import mujoco
import torch
from torch import Tensor

from envs_gpu.interface import PolicyInterface, Term
from envs_gpu.physics.base import PhysicsState
from envs_gpu.tasks import task
from envs_gpu.tasks._gymnasium import GymnasiumTask
from envs_gpu.tasks.base import Episode, Outcome

ALIVE_REWARD = 10.0
MIN_TIP_HEIGHT_M, TIP_HEIGHT_M = 1.0, 2.0
OBSERVED_LIMIT = 10.0  # of velocities (m/s, rad/s) and force (N)


@task("inverted_double_pendulum")
class InvertedDoublePendulum(GymnasiumTask):
    """Observation `policy` `[N, 9]`: cart x, sin and cos of both angles, qvel (3), the rail's end's force."""

    model_name = "inverted_double_pendulum"
    substeps = 5
    reset_noise_scale = 0.1
    normal_velocity_noise = True
    unsupported: ClassVar = {"mjx": "MJX's JAX implementation has no sensor of a joint limit's force"}

    def scene(self) -> mujoco.MjSpec:
        spec = super().scene()
        (tip,) = spec.sites
        spec.add_sensor(
            name="tip",
            type=mujoco.mjtSensor.mjSENS_FRAMEPOS,
            objtype=mujoco.mjtObj.mjOBJ_SITE,
            objname=tip.name,
        )
        spec.add_sensor(
            name="rail_end",
            type=mujoco.mjtSensor.mjSENS_JOINTLIMITFRC,
            objtype=mujoco.mjtObj.mjOBJ_JOINT,
            objname="slider",
        )
        return spec

    def interface(self) -> PolicyInterface:
        terms = (
            Term("cart_position", 1, "m"),
            Term("pole_sines", 2, low=-1.1, high=1.1),
            Term("pole_cosines", 2, low=-1.1, high=1.1),
            Term("velocity", 3, "m/s, rad/s, rad/s", clip=OBSERVED_LIMIT),
            Term("rail_end_force", 1, "N", clip=OBSERVED_LIMIT),
        )
        return replace(super().interface(), terms=terms)

    def observe(self, state: PhysicsState, episode: Episode) -> dict[str, Tensor]:
        angles = state.qpos[:, 1:]
        # The sensor gives the force's size; it always points to the middle of the rail.
        force = -state.qpos[:, :1].sign() * state.sensordata[:, self.sensor["rail_end"]]
        velocity, force = (value.clamp(-OBSERVED_LIMIT, OBSERVED_LIMIT) for value in (state.qvel, force))
        parts = (state.qpos[:, :1], angles.sin(), angles.cos(), velocity, force)
        return {"policy": torch.cat(parts, dim=-1)}

    def outcome(self, state: PhysicsState, episode: Episode, action: Tensor) -> Outcome:
        tip = state.sensordata[:, self.sensor["tip"]]
        x, height = tip[:, 0], tip[:, 2]
        fallen = height <= MIN_TIP_HEIGHT_M
        reward = {
            "alive": ALIVE_REWARD * (~fallen),
            "distance": -(0.01 * x.square() + (height - TIP_HEIGHT_M).square()),
            "velocity": -(1e-3 * state.qvel[:, 1].square() + 5e-3 * state.qvel[:, 2].square()),
        }
        return Outcome(reward, fallen, {"tip_height_m": height})
