"""Track a commanded velocity on flat ground: what the tasks of all legged robots share.

Letters: N worlds, A actions (= actuated joints), F feet. After the velocity tasks of Rudin et al. 2022
("Learning to Walk in Minutes Using Massively Parallel Deep Reinforcement Learning"), Isaac Lab and mjlab:
position targets around a default pose at 50 Hz, commands that change within the episode, and a critic with
privileged observations.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from envs_gpu.mirror import signs
from envs_gpu.observation import ObservationTerm, remembered
from envs_gpu.parameters import Parameter
from envs_gpu.physics.base import PhysicsState
from envs_gpu.tasks._legged import Legged, SensorNoise
from envs_gpu.tasks.base import Episode, Outcome
from envs_gpu.terms import locomotion
from envs_gpu.terms.contact import normal_force


class Velocity(Legged):
    """Track a velocity; a base that touches the ground, or tilts too far, has fallen.

    Observation groups: `policy` `[N, 9 + 3A]` and `critic` `[N, 13 + 3A + 3F]`.
    """

    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter("track_linear_weight", 2.0, "1/s", "the linear velocity is the command", low=0.0),
        Parameter("track_turn_weight", 1.0, "1/s", "the turn rate is the command", low=0.0),
        Parameter("alive_weight", 0.3, "1/s", "not to have fallen", low=0.0),
        Parameter("vertical_velocity_weight", -1.0, "s/m²", "squared vertical velocity", high=0.0),
        Parameter("tilt_rate_weight", -0.05, "s/rad²", "squared rates of roll and pitch", high=0.0),
        Parameter("orientation_weight", -2.0, "1/s", "squared sine of the tilt", high=0.0),
        Parameter("pose_weight", -0.15, "1/(s rad²)", "squared distance from the default pose", high=0.0),
        Parameter("power_weight", -1e-3, "1/J", "mechanical power", high=0.0),
        Parameter("torque_weight", -1e-4, "1/(s N²m²)", "squared torques", high=0.0),
        Parameter("action_rate_weight", -0.02, "1/s", "squared change of the action", high=0.0),
        Parameter("joint_limits_weight", -2.0, "1/(s rad)", "how far joints are beyond limits", high=0.0),
        Parameter("air_time_weight", 0.25, "1/s", "a step's time in the air", low=0.0),
        Parameter("slip_weight", -0.1, "s/m²", "squared speed of the feet on the ground", high=0.0),
        Parameter("fall_weight", -50.0, "1/s", "the step in which it falls", high=0.0),
        Parameter("tracking_std_m_s", 0.5, "m/s, rad/s", "error that leaves exp(-1) of a track", low=1e-3),
        Parameter("standing_pose_factor", 5.0, "1", "on the pose's weight where it is to stand", low=0.0),
        Parameter("swing_min_s", 0.15, "s", "a swing that earns nothing; shorter ones cost", low=0.0),
        Parameter("swing_max_s", 0.4, "s", "a longer swing earns no more", low=0.0),
        Parameter("upright_cosine_min", 0.5, "1", "a base that is tilted further has fallen", -1.0, 1.0),
        Parameter("command_forward_m_s", 1.0, "m/s", "commands are uniform within ± this", 0.0, 10.0),
        Parameter("command_sideways_m_s", 0.6, "m/s", "commands are uniform within ± this", 0.0, 10.0),
        Parameter("command_turn_rad_s", 1.0, "rad/s", "commands are uniform within ± this", 0.0, 10.0),
        Parameter("command_standing_share", 0.1, "1", "share of the commands to stand still", 0.0, 1.0),
        Parameter("command_interval_s", 5.0, "s", "a new one comes at random, after this on average", 1e-3),
    )
    sensor_noise = SensorNoise(gravity=0.05, turn_rad_s=0.2, joint_rad=0.01, joint_rad_s=1.5)
    """As in Isaac Lab and mjlab."""
    max_episode_steps = 1000

    def _command_terms(self) -> tuple[ObservationTerm, ...]:
        return (
            ObservationTerm(
                "command",
                3,
                remembered("command"),
                "m/s, m/s, rad/s",
                "command",
                low=-10.0,
                high=10.0,
                commands=("forward_m_s", "sideways_m_s", "turn_rad_s"),
                mirror=signs(1, -1, -1),
            ),
        )

    def _privileged_terms(self) -> tuple[ObservationTerm, ...]:
        count, feet = self._num_feet, self._feet_mirror
        air_time = ObservationTerm("air_time", count, remembered("air_time_s"), "s", mirror=feet)
        return (*super()._privileged_terms(), air_time)

    def initial_state(self, episode: Episode) -> tuple[Tensor, Tensor]:
        random = episode.random
        half_yaw = 0.5 * random.uniform("start_yaw", 1, -torch.pi, torch.pi)
        joints = self._default_qpos[7:] + random.uniform("start_joints", self._num_joints, -0.1, 0.1)
        zero = torch.zeros_like(half_yaw)
        position = self._start_position(episode)
        qpos = torch.cat((position, half_yaw.cos(), zero, zero, half_yaw.sin(), joints), -1)
        base_velocity = random.uniform("start_velocity", 6, -0.2, 0.2)
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
        chance = self.control_dt / episode.parameters["command_interval_s"][:, None]  # [N, 1]
        change = episode.random.uniform("command_change", 1) < chance
        air_time_s = episode.memory["air_time_s"]
        return {
            "command": torch.where(change, self._draw_command(episode), episode.memory["command"]),
            "last_action": action.clone(),
            "air_time_s": locomotion.next_air_time(air_time_s, self._foot_contact(state), self.control_dt),
        }

    def outcome(self, state: PhysicsState, episode: Episode, action: Tensor) -> Outcome:
        memory, read, value = episode.memory, state.sensordata, episode.parameters
        command, up = memory["command"], read[:, self.sensor["up"]]
        velocity, turn = read[:, self.sensor["velocity"]], read[:, self.sensor["gyro"]]
        torque, foot_velocity = read[:, self._torque], read[:, self._foot_velocity].unflatten(-1, (-1, 3))
        joints, contact = state.qpos[:, 7:], self._foot_contact(state)
        moving = command.square().sum(-1) > 0
        fallen = self._fallen(state, value)
        pose_error = (joints - self._default_pose).square().sum(-1)
        air_time_s = memory["air_time_s"]
        swing_s = (value[name][:, None].to(air_time_s.dtype) for name in ("swing_min_s", "swing_max_s"))
        swing = locomotion.step_air_time(air_time_s, contact, *swing_s)
        terms = {
            "track_linear": locomotion.tracking(command[:, :2], velocity[:, :2], value["tracking_std_m_s"]),
            "track_turn": locomotion.tracking(command[:, 2:], turn[:, 2:], value["tracking_std_m_s"]),
            "alive": torch.ones_like(pose_error),
            "vertical_velocity": velocity[:, 2].square(),
            "tilt_rate": turn[:, :2].square().sum(-1),
            "orientation": up[:, :2].square().sum(-1),
            "pose": pose_error * torch.where(moving, 1.0, value["standing_pose_factor"]),
            "power": locomotion.mechanical_power(torque, state.qvel[:, 6:]),
            "torque": torque.square().sum(-1),
            "action_rate": (action - memory["last_action"]).square().sum(-1),
            "joint_limits": locomotion.beyond_limits(joints, self._target_low, self._target_high),
            "air_time": swing / self.control_dt * moving,  # earned at one step, the other terms are rates
            "slip": locomotion.slip(foot_velocity, contact),
            "fall": fallen.double(),
        }
        error = (command[:, :2] - velocity[:, :2]).square().sum(-1).sqrt()
        measures = {"tracking_error_m_s": error, "fallen": fallen}
        return Outcome(self.weigh(terms, value), fallen, measures)

    def _start_position(self, episode: Episode) -> Tensor:
        """Where the base is `[N, 3]` at the start of an episode, m."""
        return self._default_qpos[:3].expand(len(episode.step), 3)

    def _fallen(self, state: PhysicsState, parameters: dict[str, Tensor]) -> Tensor:
        """`[N]` bool: too far from upright, or the base touches the ground."""
        tilted = state.sensordata[:, self.sensor["up"]][:, 2] < parameters["upright_cosine_min"]
        return tilted | (normal_force(state.sensordata[:, self._base_touch]) > 0)

    def _draw_command(self, episode: Episode) -> Tensor:
        """A velocity `[N, 3]` float32: forward, sideways, turn; zero for those that are to stand."""
        names = ("command_forward_m_s", "command_sideways_m_s", "command_turn_rad_s")
        reach = torch.stack([episode.parameters[name] for name in names], -1).float()
        unit = episode.random.uniform("command", 3, -1.0, 1.0)
        standing_share = episode.parameters["command_standing_share"][:, None]  # [N, 1]
        stands = episode.random.uniform("command_standing", 1) < standing_share
        return torch.where(stands, 0.0, unit * reach).float()
