"""Walk a Unitree G1 humanoid at a commanded velocity on flat ground."""

import mujoco

from envs_gpu.parameters import with_defaults
from envs_gpu.robots import get_robot
from envs_gpu.tasks import task
from envs_gpu.tasks._velocity import Velocity


@task("g1_velocity")
class G1Velocity(Velocity):
    """Observation `policy` `[N, 96]`, `critic` `[N, 106]`; see `Velocity`."""

    is_symmetric = True
    robot = get_robot("g1")
    imu_site = "imu_in_pelvis"
    # Two of the seven capsules under each sole span its length and almost its width.
    foot_geoms = tuple((f"{side}_foot2_collision", f"{side}_foot6_collision") for side in ("left", "right"))
    contacts_per_foot_geom = 2
    base_geoms = ("pelvis_collision", "torso_collision", "head_collision")
    # Light wrists under stiff motors: their damping has to be integrated implicitly.
    integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    parameters = with_defaults(
        Velocity.parameters,
        alive_weight=1.0,
        pose_weight=-0.3,
        torque_weight=-1e-5,
        power_weight=-3e-4,
        air_time_weight=0.5,
        slip_weight=-0.2,
        swing_min_s=0.2,
        swing_max_s=0.6,
        command_sideways_m_s=0.4,
        command_turn_rad_s=0.8,
    )
