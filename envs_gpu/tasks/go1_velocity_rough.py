"""Walk a Unitree Go1 at a commanded velocity over stairs, slopes and rough ground."""

from envs_gpu.tasks import task
from envs_gpu.tasks._velocity_rough import RoughVelocity
from envs_gpu.tasks.go1_velocity import Go1Velocity


@task("go1_velocity_rough")
class Go1VelocityRough(RoughVelocity, Go1Velocity):
    """Observation `policy` `[N, 45]`, `critic` `[N, 138]`; see `RoughVelocity`."""
