"""Swim forward with three links in a viscous fluid: Gymnasium's Swimmer-v5.

Source: Coulom 2002, "Reinforcement Learning Using Neural Networks, with Applications to Motor Control".
"""

from envs_gpu.parameters import with_defaults
from envs_gpu.tasks import task
from envs_gpu.tasks._planar_runner import PlanarRunner


@task("swimmer")
class Swimmer(PlanarRunner):
    """Observation `policy` `[N, 8]`. It never terminates."""

    model_name = "swimmer"
    unobserved_positions = 2
    substeps = 4
    reset_noise_scale = 0.1
    parameters = with_defaults(PlanarRunner.parameters, control_cost_weight=1e-4)
