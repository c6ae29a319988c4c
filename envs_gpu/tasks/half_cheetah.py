"""Run forward as a two-legged cheetah in the plane: Gymnasium's HalfCheetah-v5.

Source: Wawrzyński 2009, "A Cat-Like Robot Real-Time Learning to Run".
"""

from envs_gpu.parameters import with_defaults
from envs_gpu.tasks import task
from envs_gpu.tasks._planar_runner import PlanarRunner


@task("half_cheetah")
class HalfCheetah(PlanarRunner):
    """Observation `policy` `[N, 17]`. It never terminates."""

    model_name = "half_cheetah"
    substeps = 5
    reset_noise_scale = 0.1
    normal_velocity_noise = True
    parameters = with_defaults(PlanarRunner.parameters, control_cost_weight=0.1)
