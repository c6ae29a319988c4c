"""Walk forward on two legs in the plane: Gymnasium's Walker2d-v5.

Source: Erez, Tassa and Todorov 2011, "Infinite-Horizon Model Predictive Control for Periodic Tasks with
Contacts".
"""

from torch import Tensor

from envs_gpu.parameters import Parameter
from envs_gpu.physics.base import PhysicsState
from envs_gpu.tasks import task
from envs_gpu.tasks._gymnasium import strictly_between
from envs_gpu.tasks._planar_runner import HEALTHY_REWARD, PlanarRunner


@task("walker2d")
class Walker2d(PlanarRunner):
    """Observation `policy` `[N, 17]`."""

    model_name = "walker2d_v5"
    substeps = 4
    reset_noise_scale = 5e-3
    parameters = (
        *PlanarRunner.parameters,
        HEALTHY_REWARD,
        Parameter("healthy_z_min_m", 0.8, "m", "lower, it has fallen"),
        Parameter("healthy_z_max_m", 2.0, "m", "higher, it has left the ground"),
        Parameter("healthy_angle_max_rad", 1.0, "rad", "tilted further, it has fallen", low=0.0),
    )
    max_observed_velocity = 10.0

    def healthy(self, state: PhysicsState, parameters: dict[str, Tensor]) -> Tensor:
        height, angle, tilt = state.qpos[:, 1], state.qpos[:, 2], parameters["healthy_angle_max_rad"]
        at_height = strictly_between(height, parameters["healthy_z_min_m"], parameters["healthy_z_max_m"])
        return at_height & strictly_between(angle, -tilt, tilt)
