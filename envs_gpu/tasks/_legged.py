"""A legged robot on a ground: the scene, and what its tasks read from it.

Letters: N worlds, A actions (= actuated joints), F feet.
"""

from __future__ import annotations

from typing import ClassVar

import mujoco
import torch
from torch import Tensor

from envs_gpu.interface import PolicyInterface, Targets, Term, joint_position_term
from envs_gpu.physics.base import PhysicsState
from envs_gpu.robots import Robot, robot_model
from envs_gpu.tasks.base import Task
from envs_gpu.terms.contact import add_normal_force_sensor, normal_force
from envs_gpu.terms.stage import add_stage

_OBJECT, _SENSOR = mujoco.mjtObj, mujoco.mjtSensor
TURN_LIMIT_RAD_S, JOINT_LIMIT_RAD_S = 50.0, 100.0
"""What a sensor reads beyond these is no motion of a robot: a gyro's range is 35 rad/s."""
GROUND = "floor"
"""The geom that the robot stands on."""


class Legged(Task):
    """Position targets around a default pose at 50 Hz, for a robot with a floating base."""

    robot: ClassVar[Robot]
    imu_site: ClassVar[str]
    foot_geoms: ClassVar[tuple[tuple[str, ...], ...]]
    """For every foot (in the order of `robot.end_effectors`) the geoms that touch the ground."""
    contacts_per_foot_geom: ClassVar[int]
    base_geoms: ClassVar[tuple[str, ...]]
    """Geoms of the base whose touching the ground is sensed."""
    limb_geoms: ClassVar[tuple[str, ...]] = ()
    """Geoms that touch the ground beside those; all others pass through it."""
    timestep_s = 0.005
    integrator = mujoco.mjtIntegrator.mjINT_EULER
    substeps = 4

    def scene(self) -> mujoco.MjSpec:
        spec = robot_model(self.robot)
        option = spec.option
        option.timestep, option.integrator = self.timestep_s, self.integrator
        # Pyramids are what MJX runs. With five iterations, engines stop at different forces.
        option.cone, option.impratio = mujoco.mjtCone.mjCONE_PYRAMIDAL, 1.0
        option.iterations, option.ls_iterations = 10, 20
        for sensor in spec.sensors:
            spec.delete(sensor)
        # The ground touches the robot, and nothing else touches anything: physics decides the speed.
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

    def control(self, action: Tensor) -> Tensor:
        target = self._default_pose + self.robot.action_scale * action
        return target.clamp(self._target_low, self._target_high)

    def interface(self) -> PolicyInterface:
        count, pose = self._num_joints, self._default_pose.cpu()
        low, high = self._target_low.cpu(), self._target_high.cpu()
        terms = (  # in the order of `_proprioception`
            Term("projected_gravity", 3, low=-1.5, high=1.5),
            Term("angular_velocity", 3, "rad/s", low=-TURN_LIMIT_RAD_S, high=TURN_LIMIT_RAD_S),
            *self._asked_terms(),
            joint_position_term(pose, low, high),
            Term("joint_velocity", count, "rad/s", low=-JOINT_LIMIT_RAD_S, high=JOINT_LIMIT_RAD_S),
            Term("last_action", count, kind="last_action"),
        )
        targets = Targets(pose, torch.full_like(pose, self.robot.action_scale), low, high)
        return PolicyInterface(targets, self.servos, terms)

    def _asked_terms(self) -> tuple[Term, ...]:
        """The terms of what is `asked` of the robot in `_proprioception`."""
        return ()

    def _proprioception(self, state: PhysicsState, last_action: Tensor, *asked: Tensor) -> tuple[Tensor, ...]:
        """What the robot measures, and what is `asked` of it: see the tasks' observations."""
        read = state.sensordata
        return (
            -read[:, self.sensor["up"]],
            read[:, self.sensor["gyro"]],
            *asked,
            state.qpos[:, 7:] - self._default_pose,
            state.qvel[:, 6:],
            last_action,
        )

    def _privileged(self, state: PhysicsState) -> tuple[Tensor, ...]:
        """What it cannot measure: linear velocity, base height, foot contacts, foot heights."""
        return (
            state.sensordata[:, self.sensor["velocity"]],
            self._above_ground(state.qpos[:, :3]).unsqueeze(-1),
            self._foot_contact(state),
            self._foot_height(state),
        )

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
        """Add the geom `GROUND`, and what the scene needs to be looked at."""
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
