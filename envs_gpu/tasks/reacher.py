"""Bring a two-link arm's fingertip to a target: Gymnasium's Reacher-v5."""

from __future__ import annotations

import math

import mujoco
import torch
from torch import Tensor

from envs_gpu.observation import ObservationTerm
from envs_gpu.parameters import Parameter
from envs_gpu.physics.base import PhysicsState
from envs_gpu.tasks import task
from envs_gpu.tasks._gymnasium import GymnasiumTask
from envs_gpu.tasks.base import Episode, Outcome

ANGLE_NOISE_RAD = 0.1
VELOCITY_NOISE_RAD_S = 0.005
TARGET_RADIUS_M = 0.2


@task("reacher")
class Reacher(GymnasiumTask):
    """Observation `policy` `[N, 10]`."""

    parameters = (
        Parameter("distance_weight", 1.0, "1/m", "cost of the tip's distance from the target", low=0.0),
        Parameter("control_cost_weight", 1.0, "1", "cost of the squared actions", low=0.0),
    )
    model_name = "reacher"
    substeps = 2
    max_episode_steps = 50

    def scene(self) -> mujoco.MjSpec:
        spec = super().scene()
        for body in ("fingertip", "target"):
            spec.add_sensor(
                name=body,
                type=mujoco.mjtSensor.mjSENS_FRAMEPOS,
                objtype=mujoco.mjtObj.mjOBJ_XBODY,
                objname=body,
            )
        return spec

    def observation(self) -> dict[str, tuple[ObservationTerm, ...]]:
        target = ("target_x_m", "target_y_m")
        terms = (
            ObservationTerm("joint_cosines", 2, lambda state, _: state.qpos[:, :2].cos(), low=-1.1, high=1.1),
            ObservationTerm("joint_sines", 2, lambda state, _: state.qpos[:, :2].sin(), low=-1.1, high=1.1),
            ObservationTerm("target", 2, lambda state, _: state.qpos[:, 2:], "m", "command", commands=target),
            ObservationTerm("joint_velocity", 2, lambda state, _: state.qvel[:, :2], "rad/s"),
            ObservationTerm("target_to_tip", 2, lambda state, _: self._tip_from_target(state)[:, :2], "m"),
        )
        return {"policy": terms}

    def outcome(self, state: PhysicsState, episode: Episode, action: Tensor) -> Outcome:
        distance = torch.linalg.vector_norm(self._tip_from_target(state), dim=-1)
        control_cost = episode.parameters["control_cost_weight"].to(action.dtype) * action.square().sum(-1)
        reward = {"distance": -episode.parameters["distance_weight"] * distance, "control": -control_cost}
        never = torch.zeros_like(distance, dtype=torch.bool)
        return Outcome(reward, never, {"distance_m": distance})

    def initial_state(self, episode: Episode) -> tuple[Tensor, Tensor]:
        random, noise = episode.random, ANGLE_NOISE_RAD
        angle = self.initial_qpos[:2] + random.uniform("start_angle", 2, -noise, noise)
        # Uniform in the disc: Gymnasium draws from the square until it hits the disc.
        radius = TARGET_RADIUS_M * random.uniform("target_radius", 1).sqrt()
        direction = random.uniform("target_direction", 1, 0.0, 2.0 * math.pi)
        qpos = torch.cat((angle, radius * direction.cos(), radius * direction.sin()), dim=-1)
        velocity = random.uniform("start_velocity", 2, -VELOCITY_NOISE_RAD_S, VELOCITY_NOISE_RAD_S)
        return qpos, torch.cat((velocity, torch.zeros_like(velocity)), dim=-1)

    def _tip_from_target(self, state: PhysicsState) -> Tensor:
        """The way from the target to the fingertip `[N, 3]`, m."""
        return state.sensordata[:, self.sensor["fingertip"]] - state.sensordata[:, self.sensor["target"]]
