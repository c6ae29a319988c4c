"""Hop forward on one leg in the plane: Gymnasium's Hopper-v5.

Source: Erez, Tassa and Todorov 2011, "Infinite-Horizon Model Predictive Control for Periodic Tasks with
Contacts".
"""

from torch import Tensor

from envs_gpu.parameters import Parameter
from envs_gpu.physics.base import PhysicsState
from envs_gpu.tasks import task
from envs_gpu.tasks._gymnasium import strictly_between
from envs_gpu.tasks._planar_runner import HEALTHY_REWARD, PlanarRunner


@task("hopper")
class Hopper(PlanarRunner):
    """Observation `policy` `[N, 11]`."""

    model_name = "hopper"
    substeps = 4
    reset_noise_scale = 5e-3
    parameters = (
        *PlanarRunner.parameters,
        HEALTHY_REWARD,
        Parameter("healthy_z_min_m", 0.7, "m", "lower, it has fallen"),
        Parameter("healthy_angle_max_rad", 0.2, "rad", "tilted further, it has fallen", low=0.0),
        Parameter("healthy_state_max", 100.0, "rad, m/s, rad/s", "limit of all but x and height", low=0.0),
    )
    max_observed_velocity = 10.0

    def healthy(self, state: PhysicsState, parameters: dict[str, Tensor]) -> Tensor:
        limit, angle = parameters["healthy_state_max"][:, None], parameters["healthy_angle_max_rad"]
        bounded = strictly_between(state.qpos[:, 2:], -limit, limit).all(-1)
        bounded = bounded & strictly_between(state.qvel, -limit, limit).all(-1)
        upright = strictly_between(state.qpos[:, 2], -angle, angle)
        return bounded & upright & (state.qpos[:, 1] > parameters["healthy_z_min_m"])
