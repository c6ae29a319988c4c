"""Track a commanded velocity on flat ground: what the tasks of all legged robots share.

Letters: N worlds, A actions (= actuated joints), F feet. After the velocity tasks of Rudin et al. 2022
("Learning to Walk in Minutes Using Massively Parallel Deep Reinforcement Learning"), Isaac Lab and mjlab:
position targets around a default pose at 50 Hz, commands that change within the episode, and a critic that
sees more than a robot can measure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import mujoco
import torch
from torch import Tensor

from envs_gpu.physics.base import PhysicsState
from envs_gpu.robots import Robot, robot_model
from envs_gpu.tasks.base import Episode, Outcome, Task
from envs_gpu.terms import locomotion
from envs_gpu.terms.contact import add_normal_force_sensor, normal_force
from envs_gpu.terms.stage import add_stage

_OBJECT, _SENSOR = mujoco.mjtObj, mujoco.mjtSensor


@dataclass(frozen=True)
class Commands:
    """Velocities that are asked for, in the base's frame, drawn uniformly within ± these."""

    forward_m_s: float = 1.0
    sideways_m_s: float = 0.6
    turn_rad_s: float = 1.0
    standing_share: float = 0.1
    """Share of the commands that are to stand still."""
    mean_interval_s: float = 5.0
    """A new command comes at random, on average after so long."""


@dataclass(frozen=True)
class Weights:
    """What the reward's terms are worth a second; see `Velocity.outcome`."""

    track_linear: float = 2.0
    track_turn: float = 1.0
    alive: float = 0.3
    vertical_velocity: float = -1.0
    tilt_rate: float = -0.05
    orientation: float = -2.0
    pose: float = -0.15
    power: float = -1e-3
    torque: float = -1e-4
    action_rate: float = -0.02
    joint_limits: float = -2.0
    air_time: float = 0.25
    slip: float = -0.1
    fall: float = -50.0


@dataclass(frozen=True)
class SensorNoise:
    """How far a robot's sensors are off, where a run asks for noise of 1; as in Isaac Lab and mjlab."""

    gravity: float = 0.05
    turn_rad_s: float = 0.2
    joint_rad: float = 0.01
    joint_rad_s: float = 1.5


class Velocity(Task):
    """Observation groups, noise-free:

    `policy` `[N, 9 + 3A]`: projected gravity (3), angular velocity (3), command (3), joint positions relative
    to the default pose (A), joint velocities (A), last action (A).
    `critic`: all of it, then linear velocity (3), base height (1), foot contacts (F), foot heights (F), and
    the feet's time in the air (F).
    """

    robot: ClassVar[Robot]
    imu_site: ClassVar[str]
    foot_geoms: ClassVar[tuple[tuple[str, ...], ...]]
    """For every foot (in the order of `robot.end_effectors`) the geoms that touch the ground."""
    contacts_per_foot_geom: ClassVar[int]
    base_geoms: ClassVar[tuple[str, ...]]
    """Geoms whose touching the ground is a fall."""
    commands = Commands()
    weights = Weights()
    sensor_noise = SensorNoise()
    tracking_std_m_s = 0.5
    max_tilt_cosine = 0.5  # a base tilted by more than 60 degrees has fallen
    swing_s = (0.15, 0.4)
    timestep_s = 0.005
    integrator = mujoco.mjtIntegrator.mjINT_EULER
    substeps = 4
    max_episode_steps = 1000

    def scene(self) -> mujoco.MjSpec:
        spec = robot_model(self.robot)
        option = spec.option
        option.timestep, option.integrator = self.timestep_s, self.integrator
        # Pyramids and a few iterations: what MJX runs, and enough for feet on a floor.
        option.cone, option.impratio = mujoco.mjtCone.mjCONE_PYRAMIDAL, 1.0
        option.iterations, option.ls_iterations = 5, 8
        for sensor in spec.sensors:
            spec.delete(sensor)
        add_stage(spec, 0.0)
        self._add_floor(spec)
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
        reach = (self.commands.forward_m_s, self.commands.sideways_m_s, self.commands.turn_rad_s)
        self._command_reach = torch.tensor(reach, device=device)
        self._feet_touch = self._block("contact_", 0, sum(map(len, self.foot_geoms)))
        self._base_touch = self._block("contact_", sum(map(len, self.foot_geoms)), None)
        self._foot_velocity, self._foot_position = (
            self._block("foot_velocity_"),
            self._block("foot_position_"),
        )
        self._torque = self._block("torque_")
        noise, joints = self.sensor_noise, torch.ones(self._num_joints, device=device)
        blocks = [(noise.gravity, 3), (noise.turn_rad_s, 3), (0.0, 3)]  # in the order of `observe`
        base = torch.cat([torch.full((width,), scale, device=device) for scale, width in blocks])
        pose = (noise.joint_rad * joints, noise.joint_rad_s * joints, 0.0 * joints)
        self.observation_noise_scale = torch.cat((base, *pose))

    def control(self, action: Tensor) -> Tensor:
        target = self._default_pose + self.robot.action_scale * action
        return target.clamp(self._target_low, self._target_high)

    def initial_state(self, episode: Episode) -> tuple[Tensor, Tensor]:
        random = episode.random
        half_yaw = 0.5 * random.uniform(0, 1, -torch.pi, torch.pi)
        joints = self._default_qpos[7:] + random.uniform(1, self._num_joints, -0.1, 0.1)
        zero = torch.zeros_like(half_yaw)
        position = self._default_qpos[:3].expand(len(zero), 3)
        qpos = torch.cat((position, half_yaw.cos(), zero, zero, half_yaw.sin(), joints), -1)
        base_velocity = random.uniform(2, 6, -0.2, 0.2)
        return qpos, torch.cat((base_velocity, torch.zeros_like(joints)), -1)

    def begin(self, state: PhysicsState, episode: Episode) -> dict[str, Tensor]:
        num_worlds = len(state.qpos)
        zeros = torch.zeros(num_worlds, self._num_joints, device=state.qpos.device)
        return {
            "command": self._draw_command(episode),
            "last_action": zeros,
            "air_time_s": zeros[:, : self._num_feet].clone(),
        }

    def remember(self, state: PhysicsState, episode: Episode, action: Tensor) -> dict[str, Tensor]:
        change = episode.random.uniform(5, 1) < self.control_dt / self.commands.mean_interval_s
        air_time_s = episode.memory["air_time_s"]
        return {
            "command": torch.where(change, self._draw_command(episode), episode.memory["command"]),
            "last_action": action.clone(),
            "air_time_s": locomotion.next_air_time(air_time_s, self._foot_contact(state), self.control_dt),
        }

    def observe(self, state: PhysicsState, episode: Episode) -> dict[str, Tensor]:
        memory, read = episode.memory, state.sensordata
        policy = (
            -read[:, self.sensor["up"]],
            read[:, self.sensor["gyro"]],
            memory["command"],
            state.qpos[:, 7:] - self._default_pose,
            state.qvel[:, 6:],
            memory["last_action"],
        )
        privileged = (
            read[:, self.sensor["velocity"]],
            state.qpos[:, 2:3],
            self._foot_contact(state),
            read[:, self._foot_position].unflatten(-1, (-1, 3))[..., 2],
            memory["air_time_s"],
        )
        return {"policy": torch.cat(policy, -1), "critic": torch.cat((*policy, *privileged), -1)}

    def outcome(self, state: PhysicsState, episode: Episode, action: Tensor) -> Outcome:
        memory, read, weight = episode.memory, state.sensordata, self.weights
        command, up = memory["command"], read[:, self.sensor["up"]]
        velocity, turn = read[:, self.sensor["velocity"]], read[:, self.sensor["gyro"]]
        torque, foot_velocity = read[:, self._torque], read[:, self._foot_velocity].unflatten(-1, (-1, 3))
        joints, contact = state.qpos[:, 7:], self._foot_contact(state)
        moving = command.square().sum(-1) > 0
        fallen = (up[:, 2] < self.max_tilt_cosine) | (normal_force(read[:, self._base_touch]) > 0)
        pose_error = (joints - self._default_pose).square().sum(-1)
        swing = locomotion.step_air_time(memory["air_time_s"], contact, *self.swing_s)
        terms = {
            "track_linear": locomotion.tracking(command[:, :2], velocity[:, :2], self.tracking_std_m_s),
            "track_turn": locomotion.tracking(command[:, 2:], turn[:, 2:], self.tracking_std_m_s),
            "alive": torch.ones_like(pose_error),
            "vertical_velocity": velocity[:, 2].square(),
            "tilt_rate": turn[:, :2].square().sum(-1),
            "orientation": up[:, :2].square().sum(-1),
            "pose": pose_error * torch.where(moving, 1.0, 5.0),
            "power": locomotion.mechanical_power(torque, state.qvel[:, 6:]),
            "torque": torque.square().sum(-1),
            "action_rate": (action - memory["last_action"]).square().sum(-1),
            "joint_limits": locomotion.beyond_limits(joints, self._target_low, self._target_high),
            "air_time": swing / self.control_dt * moving,  # an event, where the others are rates
            "slip": locomotion.slip(foot_velocity, contact),
            "fall": fallen.double(),
        }
        reward = {name: getattr(weight, name) * self.control_dt * term for name, term in terms.items()}
        error = (command[:, :2] - velocity[:, :2]).square().sum(-1).sqrt()
        measures = {"tracking_error_m_s": error, "fallen": fallen}
        return Outcome(reward, fallen, measures)

    def _draw_command(self, episode: Episode) -> Tensor:
        """A velocity `[N, 3]`: forward, sideways, turn; zero for those that are to stand."""
        unit = episode.random.uniform(3, 3, -1.0, 1.0)
        stands = episode.random.uniform(4, 1) < self.commands.standing_share
        return torch.where(stands, 0.0, unit * self._command_reach).float()

    def _foot_contact(self, state: PhysicsState) -> Tensor:
        """`[N, F]` bool: the foot touches the ground."""
        per_foot = state.sensordata[:, self._feet_touch].unflatten(-1, (self._num_feet, -1))
        return normal_force(per_foot) > 0

    def _block(self, prefix: str, first: int = 0, stop: int | None = None) -> slice:
        """Where the sensors called `prefix...` lie, one behind the other."""
        found = [where for name, where in self.sensor.items() if name.startswith(prefix)][first:stop]
        return slice(found[0].start, found[-1].stop)

    def _add_floor(self, spec: mujoco.MjSpec) -> None:
        """A floor that feet and base touch, and nothing else touches anything: physics decides the speed."""
        feet = [name for geoms in self.foot_geoms for name in geoms]
        for geom in spec.geoms:
            geom.contype, geom.conaffinity = 0, int(geom.name in (*feet, *self.base_geoms))
            geom.condim, geom.margin = 3, 0.0
        spec.worldbody.add_geom(
            name="floor",
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
                add_normal_force_sensor(spec, geom, "floor", self.contacts_per_foot_geom)
        for geom in self.base_geoms:
            add_normal_force_sensor(spec, geom, "floor", 1)
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
