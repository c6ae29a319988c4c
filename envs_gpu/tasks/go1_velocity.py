"""Walk a Unitree Go1 at a commanded velocity on flat ground."""

from envs_gpu.robots import get_robot
from envs_gpu.tasks import task
from envs_gpu.tasks._velocity import Velocity


@task("go1_velocity")
class Go1Velocity(Velocity):
    """Observation `policy` `[N, 45]`, `critic` `[N, 61]`; see `Velocity`."""

    is_symmetric = True
    robot = get_robot("go1")
    imu_site = "imu"
    foot_geoms = (("FR",), ("FL",), ("RR",), ("RL",))
    contacts_per_foot_geom = 1
    base_geoms = ("geom_1",)  # the box in the middle of the trunk
