"""An arm on a table, driven by joint position targets at 50 Hz: what the YAM's tasks share.

Letters: N worlds, A actions (= servos), J joints of arm and gripper. Only the gripper touches anything: the
table, and what it is to grasp; the links do not touch one another.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import mujoco
import torch
from torch import Tensor

from envs_gpu.interface import Targets
from envs_gpu.observation import ObservationTerm, joint_position_term, last_action_term
from envs_gpu.parameters import Parameter
from envs_gpu.physics.base import PhysicsState
from envs_gpu.robots import Robot, robot_model
from envs_gpu.tasks.base import Task
from envs_gpu.terms.locomotion import beyond_limits
from envs_gpu.terms.stage import add_stage

_OBJECT, _SENSOR = mujoco.mjtObj, mujoco.mjtSensor
FREE = mujoco.mjtJoint.mjJNT_FREE

# Two geoms collide where one's contype matches the other's conaffinity.
TABLE, GRIPPER = 1, 2

PAD_RADIUS_M = 0.004
PAD_SPHERES_M = ((0.002, 0.078), (0.0, 0.045), (0.031, 0.048), (0.012, 0.062))
"""Contact spheres of a finger (across, along): its tip, both ends of its triangle's base, and the middle."""
PAD_DEPTH_M = -0.0038
"""Of the spheres' centres, chosen so that their surface is where that of menagerie's 0.6 mm spheres is."""
FINGERS = {"lf_down": 1.0, "rf_down": -1.0}
"""The fingers' bodies, mirror images of each other."""
JOINT_LIMIT_RAD_S = 100.0
"""No joint moves faster than this (rad/s, or m/s), so such a reading is wrong."""
CAMERA_M, CAMERA_QUAT = (0.85, -0.85, 0.6), (0.7856, 0.5334, 0.1761, 0.2594)
PALM_CAPSULES = ("link6_1_collision", "link6_3_collision")


class Arm(Task):
    """The first `J` positions and velocities are the robot's; those of other bodies come after them.

    The group `policy` is what the robot measures or is sent; `critic` is all of it and privileged terms.
    """

    robot: ClassVar[Robot]
    parameters: ClassVar[tuple[Parameter, ...]] = (  # what `effort_terms` are worth a second
        Parameter("action_rate_weight", -0.02, "1/s", "squared change of the action", high=0.0),
        Parameter("joint_velocity_weight", -2e-3, "s/rad²", "squared joint velocities", high=0.0),
        Parameter("torque_weight", -1e-4, "1/(s N²m²)", "squared torques", high=0.0),
        Parameter("joint_limits_weight", -2.0, "1/(s rad)", "how far joints are beyond limits", high=0.0),
    )
    action_reach = 2.0
    """Actions are within ± this, times the robot's action scale in rad around the default pose."""
    initial_noise_rad = 0.1
    timestep_s = 0.005
    substeps = 4

    def scene(self) -> mujoco.MjSpec:
        spec = robot_model(self.robot)
        option = spec.option
        option.timestep = self.timestep_s
        # With explicit damping, the stiff servos of the wrist would be unstable at this timestep.
        option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
        # A held object slips by 1 mm/s; with an impratio of 1 it would slip by 5 mm/s.
        option.cone, option.impratio = mujoco.mjtCone.mjCONE_PYRAMIDAL, 10.0
        option.iterations, option.ls_iterations = 20, 20
        for key in spec.keys:
            spec.delete(key)  # its length is the robot's alone
        _set_stage(spec)
        _add_contacts(spec)
        self._furnish(spec)
        self._add_sensors(spec)
        return spec

    def _furnish(self, spec: mujoco.MjSpec) -> None:
        """Add what is on the table, and change the robot where the task needs another one."""

    def bind(self, model: mujoco.MjModel, device: torch.device) -> None:
        super().bind(model, device)
        joints = [model.joint(i).name for i in range(model.njnt) if model.jnt_type[i] != FREE]
        self._num_joints = len(joints)
        self._target_low, self._target_high = self.action_low, self.action_high
        self.action_high = torch.full_like(self._target_high, self.action_reach)
        self.action_low = -self.action_high
        default = [self.robot.default_position(joint) for joint in joints]
        self._default_qpos = torch.tensor(default, device=device, dtype=torch.float64)
        self._default_pose = self._default_qpos.float()
        self._neutral_target = self._default_pose[model.actuator_trnid[:, 0].tolist()]
        self._action_scale = torch.full_like(self._neutral_target, self.robot.action_scale)
        slide = mujoco.mjtJoint.mjJNT_SLIDE
        self._joint_units = ["m" if kind == slide else "rad" for kind in model.jnt_type[: self._num_joints]]
        limits = torch.tensor(model.jnt_range[: self._num_joints], device=device, dtype=torch.float32)
        self._joint_low, self._joint_high = limits.T
        self._torque = self.sensor_block("torque_")

    def control(self, action: Tensor) -> Tensor:
        target = self._neutral_target + self._action_scale * action
        return target.clamp(self._target_low, self._target_high)

    def targets(self) -> Targets:
        return Targets(
            self._neutral_target.cpu(),
            self._action_scale.cpu(),
            self._target_low.cpu(),
            self._target_high.cpu(),
        )

    def observation(self) -> dict[str, tuple[ObservationTerm, ...]]:
        count, limit = self._num_joints, JOINT_LIMIT_RAD_S
        units = ", ".join(self._joint_units)
        rates = ", ".join(f"{unit}/s" for unit in self._joint_units)
        policy = (
            joint_position_term(
                lambda state, _: state.qpos[:, :count],
                self._default_pose,
                self._joint_low,
                self._joint_high,
                units,
            ),
            ObservationTerm(
                "joint_velocity", count, lambda state, _: state.qvel[:, :count], rates, low=-limit, high=limit
            ),
            *self._scene_terms(),
            last_action_term(len(self.action_low)),
        )
        return {"policy": policy, "critic": (*policy, *self._privileged_terms())}

    @abstractmethod
    def _scene_terms(self) -> tuple[ObservationTerm, ...]:
        """What the policy observes of the scene, between the joints and the last action."""

    @abstractmethod
    def _privileged_terms(self) -> tuple[ObservationTerm, ...]:
        """What the critic observes beside that."""

    def read(self, state: PhysicsState, sensor: str) -> Tensor:
        """The values of a sensor `[N, dim]`."""
        return state.sensordata[:, self.sensor[sensor]]

    def effort_terms(self, state: PhysicsState, action: Tensor, last_action: Tensor) -> dict[str, Tensor]:
        """The terms that every task of the arm penalizes, unweighted, name -> `[N]`."""
        position, velocity = state.qpos[:, : self._num_joints], state.qvel[:, : self._num_joints]
        return {
            "action_rate": (action - last_action).square().sum(-1),
            "joint_velocity": velocity.square().sum(-1),
            "torque": state.sensordata[:, self._torque].square().sum(-1),
            "joint_limits": beyond_limits(position, self._joint_low, self._joint_high),
        }

    def _add_sensors(self, spec: mujoco.MjSpec) -> None:
        (tool,) = self.robot.end_effectors
        for what, kind in (("position", _SENSOR.mjSENS_FRAMEPOS), ("velocity", _SENSOR.mjSENS_FRAMELINVEL)):
            spec.add_sensor(name=f"tool_{what}", type=kind, objtype=_OBJECT.mjOBJ_SITE, objname=tool)
        for actuator in spec.actuators:
            spec.add_sensor(
                name=f"torque_{actuator.name}",
                type=_SENSOR.mjSENS_ACTUATORFRC,
                objtype=_OBJECT.mjOBJ_ACTUATOR,
                objname=actuator.name,
            )


def _set_stage(spec: mujoco.MjSpec) -> None:
    """Add light, floor and a camera at the side; remove the robot's own camera."""
    add_stage(spec, -0.002)  # drawn below the base's plate, which the table's plane runs through
    spec.delete(spec.camera("front_cam"))
    spec.worldbody.add_camera(name="side", pos=CAMERA_M, quat=CAMERA_QUAT)


def pad_names() -> dict[str, list[str]]:
    """The spheres that a finger touches with, by the finger's body."""
    return {body: [f"{body}_pad_{i}" for i in range(len(PAD_SPHERES_M))] for body in FINGERS}


def _add_contacts(spec: mujoco.MjSpec) -> None:
    """Let table and gripper collide as plane and spheres, which every engine computes exactly and alike."""
    for geom in spec.geoms:
        touches = geom.name in PALM_CAPSULES
        geom.contype, geom.conaffinity = 0, TABLE if touches else 0
    spec.worldbody.add_geom(
        name="table",
        type=mujoco.mjtGeom.mjGEOM_PLANE,
        size=(0, 0, 0.05),
        contype=TABLE,
        conaffinity=0,
        rgba=(0, 0, 0, 0),
    )
    for (body, mirror), names in zip(FINGERS.items(), pad_names().values(), strict=True):
        for name, (across, along) in zip(names, PAD_SPHERES_M, strict=True):
            spec.body(body).add_geom(
                name=name,
                type=mujoco.mjtGeom.mjGEOM_SPHERE,
                size=(PAD_RADIUS_M, 0, 0),
                pos=(mirror * across, PAD_DEPTH_M, along),
                mass=0.0,  # the finger has its mass from the maker's model
                group=3,
                contype=GRIPPER,
                conaffinity=TABLE,
                condim=3,
                friction=(1.0, 0.005, 0.0001),
            )
