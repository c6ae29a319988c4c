"""Walk forward on two legs in the plane: Gymnasium's Walker2d-v5.

Source: Erez, Tassa and Todorov 2011, "Infinite-Horizon Model Predictive Control for Periodic Tasks with
Contacts".
"""

from typing import ClassVar

from torch import Tensor

from envs_gpu.physics.base import PhysicsState
from envs_gpu.tasks import task
from envs_gpu.tasks._gymnasium import strictly_between
from envs_gpu.tasks._planar_runner import PlanarRunner

HEIGHT_RANGE_M = (0.8, 2.0)
ANGLE_RANGE_RAD = (-1.0, 1.0)


@task("walker2d")
class Walker2d(PlanarRunner):
    """Observation `policy` `[N, 17]`: qpos without x (8), qvel (9)."""

    unsupported: ClassVar = {
        "newton": "Newton's importer puts the root hinge 1.25 m below where the scene has it"
    }

    model_name = "walker2d_v5"
    substeps = 4
    reset_noise_scale = 5e-3
    control_cost_weight = 1e-3
    max_observed_velocity = 10.0

    def healthy(self, state: PhysicsState) -> Tensor:
        height, angle = state.qpos[:, 1], state.qpos[:, 2]
        return strictly_between(height, *HEIGHT_RANGE_M) & strictly_between(angle, *ANGLE_RANGE_RAD)
