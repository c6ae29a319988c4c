"""A legged robot on the ground: the scene, and what its tasks observe of it.

Letters: N worlds, A actions (= actuated joints), F feet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import mujoco
import torch
from torch import Tensor

from envs_gpu.interface import Targets
from envs_gpu.mirror import AXIAL, POLAR, SCALAR
from envs_gpu.observation import ObservationTerm, joint_position_term, last_action_term
from envs_gpu.physics.base import PhysicsState
from envs_gpu.robots import Robot, robot_model
from envs_gpu.tasks.base import Task
from envs_gpu.terms.contact import add_normal_force_sensor, normal_force
from envs_gpu.terms.stage import add_stage

_OBJECT, _SENSOR = mujoco.mjtObj, mujoco.mjtSensor
TURN_LIMIT_RAD_S, JOINT_LIMIT_RAD_S = 50.0, 100.0
"""No robot moves faster than this, so such a reading is wrong; a gyro's range is 35 rad/s."""
GROUND = "floor"
"""The geom that the robot stands on."""


@dataclass(frozen=True)
class SensorNoise:
    """Errors of a robot's sensors where a run asks for noise of 1; see `ObservationTerm.noise`."""

    gravity: float | None = None
    turn_rad_s: float | None = None
    joint_rad: float | None = None
    joint_rad_s: float | None = None


class Legged(Task):
    """Position targets around a default pose at 50 Hz, for a robot with a floating base.

    The group `policy` is what the robot measures or is sent; `critic` is all of it and privileged terms.
    """

    robot: ClassVar[Robot]
    imu_site: ClassVar[str]
    foot_geoms: ClassVar[tuple[tuple[str, ...], ...]]
    """For every foot (in the order of `robot.end_effectors`) the geoms that touch the ground."""
    contacts_per_foot_geom: ClassVar[int]
    base_geoms: ClassVar[tuple[str, ...]]
    """Geoms of the base with a sensor of their contact with the ground."""
    limb_geoms: ClassVar[tuple[str, ...]] = ()
    """Other geoms that collide with the ground; all that are not listed pass through it."""
    sensor_noise: ClassVar[SensorNoise] = SensorNoise()
    timestep_s = 0.005
    integrator = mujoco.mjtIntegrator.mjINT_EULER
    substeps = 4

    def scene(self) -> mujoco.MjSpec:
        spec = robot_model(self.robot)
        option = spec.option
        option.timestep, option.integrator = self.timestep_s, self.integrator
        # MJX runs pyramidal cones. After only five iterations, engines would stop at different forces.
        option.cone, option.impratio = mujoco.mjtCone.mjCONE_PYRAMIDAL, 1.0
        option.iterations, option.ls_iterations = 10, 20
        for sensor in spec.sensors:
            spec.delete(sensor)
        # Only the robot and the ground collide: fewer contacts make physics faster.
        touching = {*sum(self.foot_geoms, ()), *self.base_geoms, *self.limb_geoms}
        for geom in spec.geoms:
            geom.contype, geom.conaffinity = 0, int(geom.name in touching)
            geom.condim, geom.margin = 3, 0.0
        self._add_ground(spec)
        self._add_sensors(spec)
        return spec

    def bind(self, model: mujoco.MjModel, device: torch.device) -> None:
        super().bind(model, device)
        self._target_low, self._target_high = self.action_low, self.action_high
        self.action_high = torch.ones_like(self._target_high)
        self.action_low = -self.action_high
        self._default_qpos = torch.tensor(model.key("default").qpos, device=device)
        self._default_pose = self._default_qpos[7:].float()
        self._num_joints, self._num_feet = model.nu, len(self.foot_geoms)
        self._feet_touch = self.sensor_block("contact_", 0, sum(map(len, self.foot_geoms)))
        self._base_touch = self.sensor_block("contact_", sum(map(len, self.foot_geoms)), None)
        self._foot_velocity, self._foot_position = (
            self.sensor_block("foot_velocity_"),
            self.sensor_block("foot_position_"),
        )
        self._torque = self.sensor_block("torque_")
        mirror = self.mirror
        self._joints_mirror = mirror.joints if mirror else None
        self._actions_mirror = mirror.controls if mirror else None
        self._feet_mirror = mirror.sites(self.robot.end_effectors) if mirror else None

    def control(self, action: Tensor) -> Tensor:
        target = self._default_pose + self.robot.action_scale * action
        return target.clamp(self._target_low, self._target_high)

    def targets(self) -> Targets:
        pose, scale = self._default_pose.cpu(), self.robot.action_scale
        return Targets(pose, torch.full_like(pose, scale), self._target_low.cpu(), self._target_high.cpu())

    def observation(self) -> dict[str, tuple[ObservationTerm, ...]]:
        policy = self._policy_terms()
        return {"policy": policy, "critic": (*policy, *self._privileged_terms())}

    def _policy_terms(self) -> tuple[ObservationTerm, ...]:
        """What the robot measures and is asked to do."""
        count, turn, speed = self._num_joints, TURN_LIMIT_RAD_S, JOINT_LIMIT_RAD_S
        noise, up = self.sensor_noise, self.sensor["up"]
        joints = self._joints_mirror
        return (
            ObservationTerm(
                "projected_gravity",
                3,
                lambda state, _: -state.sensordata[:, up],
                low=-1.5,
                high=1.5,
                noise=noise.gravity,
                mirror=POLAR,
            ),
            ObservationTerm(
                "angular_velocity",
                3,
                self.sensor_reading("gyro"),
                "rad/s",
                low=-turn,
                high=turn,
                noise=noise.turn_rad_s,
                mirror=AXIAL,
            ),
            *self._command_terms(),
            joint_position_term(
                lambda state, _: state.qpos[:, 7:],
                self._default_pose,
                self._target_low,
                self._target_high,
                noise=noise.joint_rad,
                mirror=joints,
            ),
            ObservationTerm(
                "joint_velocity",
                count,
                lambda state, _: state.qvel[:, 6:],
                "rad/s",
                low=-speed,
                high=speed,
                noise=noise.joint_rad_s,
                mirror=joints,
            ),
            last_action_term(count, self._actions_mirror),
        )

    def _command_terms(self) -> tuple[ObservationTerm, ...]:
        """What the robot is asked to do; nothing by default."""
        return ()

    def _privileged_terms(self) -> tuple[ObservationTerm, ...]:
        """What the robot cannot measure."""
        count, feet = self._num_feet, self._feet_mirror
        return (
            ObservationTerm("linear_velocity", 3, self.sensor_reading("velocity"), "m/s", mirror=POLAR),
            ObservationTerm("base_height", 1, lambda state, _: self._base_height(state), "m", mirror=SCALAR),
            ObservationTerm("foot_contact", count, lambda state, _: self._foot_contact(state), mirror=feet),
            ObservationTerm(
                "foot_height", count, lambda state, _: self._foot_height(state), "m", mirror=feet
            ),
        )

    def _base_height(self, state: PhysicsState) -> Tensor:
        """`[N, 1]` height of the base above the ground, m."""
        return self._above_ground(state.qpos[:, :3]).unsqueeze(-1)

    def _above_ground(self, position: Tensor) -> Tensor:
        """Heights `[...]` of points `[..., 3]` above the ground right below them, m."""
        return position[..., 2]

    def _foot_contact(self, state: PhysicsState) -> Tensor:
        """`[N, F]` bool: the foot touches the ground."""
        per_foot = state.sensordata[:, self._feet_touch].unflatten(-1, (self._num_feet, -1))
        return normal_force(per_foot) > 0

    def _foot_height(self, state: PhysicsState) -> Tensor:
        """`[N, F]` height of the feet above the ground, m."""
        return self._above_ground(state.sensordata[:, self._foot_position].unflatten(-1, (-1, 3)))

    def _add_ground(self, spec: mujoco.MjSpec) -> None:
        """Add the geom `GROUND`, and light and background for pictures."""
        add_stage(spec, 0.0)
        spec.worldbody.add_geom(
            name=GROUND,
            type=mujoco.mjtGeom.mjGEOM_PLANE,
            size=(0, 0, 0.05),
            contype=1,
            conaffinity=0,
            rgba=(0, 0, 0, 0),
        )

    def _add_sensors(self, spec: mujoco.MjSpec) -> None:
        for name, kind in (("gyro", _SENSOR.mjSENS_GYRO), ("velocity", _SENSOR.mjSENS_VELOCIMETER)):
            spec.add_sensor(name=name, type=kind, objtype=_OBJECT.mjOBJ_SITE, objname=self.imu_site)
        up = spec.add_sensor(
            name="up", type=_SENSOR.mjSENS_FRAMEZAXIS, objtype=_OBJECT.mjOBJ_BODY, objname="world"
        )
        up.reftype, up.refname = _OBJECT.mjOBJ_SITE, self.imu_site
        for geoms in self.foot_geoms:
            for geom in geoms:
                add_normal_force_sensor(spec, geom, GROUND, self.contacts_per_foot_geom)
        for geom in self.base_geoms:
            add_normal_force_sensor(spec, geom, GROUND, 1)
        feet = (("velocity", _SENSOR.mjSENS_FRAMELINVEL), ("position", _SENSOR.mjSENS_FRAMEPOS))
        for what, kind in feet:
            for site in self.robot.end_effectors:
                spec.add_sensor(
                    name=f"foot_{what}_{site}", type=kind, objtype=_OBJECT.mjOBJ_SITE, objname=site
                )
        for actuator in spec.actuators:
            spec.add_sensor(
                name=f"torque_{actuator.name}",
                type=_SENSOR.mjSENS_ACTUATORFRC,
                objtype=_OBJECT.mjOBJ_ACTUATOR,
                objname=actuator.name,
            )
