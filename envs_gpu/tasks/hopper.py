"""Hop forward on one leg in the plane: Gymnasium's Hopper-v5.

Source: Erez, Tassa and Todorov 2011, "Infinite-Horizon Model Predictive Control for Periodic Tasks with
Contacts".
"""

from typing import ClassVar

from torch import Tensor

from envs_gpu.physics.base import PhysicsState
from envs_gpu.tasks import task
from envs_gpu.tasks._gymnasium import strictly_between
from envs_gpu.tasks._planar_runner import PlanarRunner

MIN_HEIGHT_M = 0.7
MAX_ANGLE_RAD = 0.2
MAX_STATE = 100.0  # of every position and velocity but x and height


@task("hopper")
class Hopper(PlanarRunner):
    """Observation `policy` `[N, 11]`: qpos without x (5), qvel (6)."""

    unsupported: ClassVar = {
        "newton": "Newton's importer puts the root hinge 1.25 m below where the scene has it"
    }

    model_name = "hopper"
    substeps = 4
    reset_noise_scale = 5e-3
    control_cost_weight = 1e-3
    max_observed_velocity = 10.0

    def healthy(self, state: PhysicsState) -> Tensor:
        bounded = strictly_between(state.qpos[:, 2:], -MAX_STATE, MAX_STATE).all(-1)
        bounded = bounded & strictly_between(state.qvel, -MAX_STATE, MAX_STATE).all(-1)
        upright = strictly_between(state.qpos[:, 2], -MAX_ANGLE_RAD, MAX_ANGLE_RAD)
        return bounded & upright & (state.qpos[:, 1] > MIN_HEIGHT_M)
