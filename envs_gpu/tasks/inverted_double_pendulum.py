"""Keep a pole on a pole upright on a cart: Gymnasium's InvertedDoublePendulum-v5."""

from __future__ import annotations

from typing import ClassVar

import mujoco
from torch import Tensor

from envs_gpu.observation import ObservationTerm
from envs_gpu.parameters import Parameter
from envs_gpu.physics.base import PhysicsState
from envs_gpu.tasks import task
from envs_gpu.tasks._gymnasium import GymnasiumTask
from envs_gpu.tasks.base import Episode, Outcome

OBSERVED_LIMIT = 10.0  # of velocities (m/s, rad/s) and force (N)


@task("inverted_double_pendulum")
class InvertedDoublePendulum(GymnasiumTask):
    """Observation `policy` `[N, 9]`."""

    parameters = (
        Parameter("alive_reward", 10.0, "1", "reward for a step in which the tip is up", low=0.0),
        Parameter("tip_z_min_m", 1.0, "m", "height of the tip at which the episode ends"),
        Parameter("tip_z_target_m", 2.0, "m", "height of the tip that costs nothing"),
        Parameter("tip_x_cost_weight", 0.01, "1/m²", "cost of the tip's squared x", low=0.0),
        Parameter("tip_z_cost_weight", 1.0, "1/m²", "cost of the tip's squared error in height", low=0.0),
        Parameter("lower_velocity_cost_weight", 1e-3, "s²/rad²", "cost of the lower pole's motion", low=0.0),
        Parameter("upper_velocity_cost_weight", 5e-3, "s²/rad²", "cost of the upper pole's motion", low=0.0),
    )
    model_name = "inverted_double_pendulum"
    substeps = 5
    reset_noise_scale = 0.1
    normal_velocity_noise = True
    unsupported: ClassVar = {"mjx": "MJX's JAX implementation has no sensor of a joint limit's force"}

    def scene(self) -> mujoco.MjSpec:
        spec = super().scene()
        (tip,) = spec.sites
        spec.add_sensor(
            name="tip",
            type=mujoco.mjtSensor.mjSENS_FRAMEPOS,
            objtype=mujoco.mjtObj.mjOBJ_SITE,
            objname=tip.name,
        )
        spec.add_sensor(
            name="rail_end",
            type=mujoco.mjtSensor.mjSENS_JOINTLIMITFRC,
            objtype=mujoco.mjtObj.mjOBJ_JOINT,
            objname="slider",
        )
        return spec

    def observation(self) -> dict[str, tuple[ObservationTerm, ...]]:
        limit, rates = OBSERVED_LIMIT, "m/s, rad/s, rad/s"
        terms = (
            ObservationTerm("cart_position", 1, lambda state, _: state.qpos[:, :1], "m"),
            ObservationTerm("pole_sines", 2, lambda state, _: state.qpos[:, 1:].sin(), low=-1.1, high=1.1),
            ObservationTerm("pole_cosines", 2, lambda state, _: state.qpos[:, 1:].cos(), low=-1.1, high=1.1),
            ObservationTerm("velocity", 3, lambda state, _: state.qvel, rates, clip=limit),
            ObservationTerm("rail_end_force", 1, self._rail_end_force, "N", clip=limit),
        )
        return {"policy": terms}

    def outcome(self, state: PhysicsState, episode: Episode, action: Tensor) -> Outcome:
        tip = state.sensordata[:, self.sensor["tip"]]
        x, height = tip[:, 0], tip[:, 2]
        value = episode.parameters
        fallen = height <= value["tip_z_min_m"]
        sideways = value["tip_x_cost_weight"] * x.square()
        upward = value["tip_z_cost_weight"] * (height - value["tip_z_target_m"]).square()
        lower = value["lower_velocity_cost_weight"] * state.qvel[:, 1].square()
        upper = value["upper_velocity_cost_weight"] * state.qvel[:, 2].square()
        reward = {
            "alive": value["alive_reward"] * (~fallen),
            "distance": -(sideways + upward),
            "velocity": -(lower + upper),
        }
        return Outcome(reward, fallen, {"tip_height_m": height})

    def _rail_end_force(self, state: PhysicsState, _: Episode) -> Tensor:
        """Force of the rail's end on the cart `[N, 1]`, N: its size is sensed, its direction is inwards."""
        return -state.qpos[:, :1].sign() * state.sensordata[:, self.sensor["rail_end"]]
