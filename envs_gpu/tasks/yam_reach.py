"""Bring the YAM's tool to targets that change, and hold it there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import mujoco
import numpy as np
import torch
from torch import Tensor

from envs_gpu.goals import Goals
from envs_gpu.observation import ObservationTerm, remembered
from envs_gpu.parameters import Parameter
from envs_gpu.physics.base import PhysicsState
from envs_gpu.robots import get_robot
from envs_gpu.tasks import task
from envs_gpu.tasks._arm import Arm
from envs_gpu.tasks.base import Episode, Outcome
from envs_gpu.terms.manipulation import closeness, distance


@dataclass(frozen=True)
class Postures:
    """Random postures of the arm; targets are where they put the tool."""

    joint_offset_rad: float = 0.9
    """Joints are drawn within ± this around the default pose, so that actions reach the posture."""
    lowest_m: float = 0.08
    """Height of the lowest target."""
    nearest_m: float = 0.18
    """Smallest distance of a target from the base's vertical axis; nearer, the gripper would meet the arm."""
    count: int = 4096


@task("yam_reach")
class YamReach(Arm):
    """Observation groups: `policy` `[N, 21]` and `critic` `[N, 30]`. Positions are in the base's frame.

    The gripper is shut and stays so.
    """

    robot = get_robot("yam")
    postures = Postures()
    parameters = (
        *Arm.parameters,
        Parameter("near_weight", 1.0, "1/s", "the tool is near the target", low=0.0),
        Parameter("precise_weight", 2.0, "1/s", "the tool is at the target", low=0.0),
        Parameter("reached_weight", 0.0, "1/s", "the target is reached: alone, a sparse reward", low=0.0),
        Parameter(
            "near_scale_m", 0.25, "m", "distance that leaves 0.24 of the reward for being near", low=1e-3
        ),
        Parameter("precise_scale_m", 0.05, "m", "the same of the reward for precision", low=1e-3),
        Parameter("reached_m", 0.02, "m", "distance that counts as reached", low=0.0),
        Parameter("target_interval_s", 3.0, "s", "a new one comes at random, after this on average", 1e-3),
    )
    max_episode_steps = 500
    # MuJoCo takes inertias about the arm's centre of mass, where float32 keeps six digits of the wrist's
    # 0.0027 kg m², and the wrist's motor accelerates it by 3800 rad/s². Without this factor, C MuJoCo with
    # relative errors of 1e-6 in the inertias would have 1.2 times the allowed error; Warp has 1.3 times.
    rounding_factor = 2.0

    def _furnish(self, spec: mujoco.MjSpec) -> None:
        for equality in spec.equalities:
            spec.delete(equality)
        for finger in ("left_finger", "right_finger"):
            spec.delete(spec.actuator(finger))
            spec.delete(spec.joint(finger))

    def bind(self, model: mujoco.MjModel, device: torch.device) -> None:
        super().bind(model, device)
        tool = reachable_positions(
            model, self.robot.end_effectors[0], self._default_qpos.cpu().numpy(), self.postures
        )
        self._reachable_m = torch.tensor(tool, dtype=torch.float32, device=device)

    def _scene_terms(self) -> tuple[ObservationTerm, ...]:
        names = ("target_x_m", "target_y_m", "target_z_m")
        return (
            ObservationTerm(
                "target", 3, remembered("target"), "m", "command", low=-2.0, high=2.0, commands=names
            ),
        )

    def _privileged_terms(self) -> tuple[ObservationTerm, ...]:
        return (
            ObservationTerm("tool_position", 3, self.sensor_reading("tool_position"), "m"),
            ObservationTerm("tool_velocity", 3, self.sensor_reading("tool_velocity"), "m/s"),
            ObservationTerm("tool_to_target", 3, self._tool_to_target, "m"),
        )

    def goals(self) -> Goals:
        """The tool is to be where the target is."""
        return Goals(
            goal="target",
            achieved="tool_position",
            rewards=self._goal_rewards,
            parameters=(
                *("near_weight", "precise_weight", "reached_weight"),
                *("near_scale_m", "precise_scale_m", "reached_m"),
            ),
            dependent={"tool_to_target": lambda tool, target: target - tool},
        )

    def initial_state(self, episode: Episode) -> tuple[Tensor, Tensor]:
        noise = self.initial_noise_rad
        offset = episode.random.uniform("start_joints", self._num_joints, -noise, noise)
        qpos = self._default_qpos + offset
        return qpos, torch.zeros_like(qpos)

    def begin(self, state: PhysicsState, episode: Episode) -> dict[str, Tensor]:
        target = self._draw_target(episode)
        return {"target": target, "last_action": target.new_zeros(len(target), len(self.action_low))}

    def remember(self, state: PhysicsState, episode: Episode, action: Tensor) -> dict[str, Tensor]:
        chance = self.control_dt / episode.parameters["target_interval_s"][:, None]  # [N, 1]
        change = episode.random.uniform("target_change", 1) < chance
        target = torch.where(change, self._draw_target(episode), episode.memory["target"])
        return {"target": target, "last_action": action.clone()}

    def outcome(self, state: PhysicsState, episode: Episode, action: Tensor) -> Outcome:
        tool, target = self.read(state, "tool_position"), episode.memory["target"]
        effort = self.effort_terms(state, action, episode.memory["last_action"])
        reward = self._goal_rewards(tool, target, episode.parameters)
        reward |= self.weigh(effort, episode.parameters)
        distance_m = distance(tool, target)
        never = torch.zeros_like(distance_m, dtype=torch.bool)
        measures = {"distance_m": distance_m, "reached": distance_m < episode.parameters["reached_m"]}
        return Outcome(reward, never, measures)

    def _goal_rewards(
        self, tool: Tensor, target: Tensor, parameters: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """What it is worth that the tool is at `tool` `[N, 3]`, weighted, name -> `[N]`."""
        distance_m = distance(tool, target)
        terms = {
            "near": closeness(distance_m, parameters["near_scale_m"]),
            "precise": closeness(distance_m, parameters["precise_scale_m"]),
            "reached": (distance_m < parameters["reached_m"]).to(distance_m.dtype),
        }
        return self.weigh(terms, parameters)

    def _tool_to_target(self, state: PhysicsState, episode: Episode) -> Tensor:
        """The way from the tool to the target `[N, 3]`, m."""
        return episode.memory["target"] - self.read(state, "tool_position")

    def _draw_target(self, episode: Episode) -> Tensor:
        """One of the reachable positions `[N, 3]`."""
        number = (episode.random.uniform("target", 1) * len(self._reachable_m)).long().squeeze(-1)
        return self._reachable_m[number]


def reachable_positions(
    model: mujoco.MjModel, site: str, default_qpos: np.ndarray, postures: Postures
) -> np.ndarray:
    """Where forward kinematics puts a site in random postures, always the same ones; `[K, 3]`, m."""
    low, high = model.jnt_range.T
    offset = postures.joint_offset_rad
    rng, data = np.random.default_rng(0), mujoco.MjData(model)
    positions = np.empty((postures.count, 3))
    for row in positions:
        while True:
            data.qpos[:] = rng.uniform(
                (default_qpos - offset).clip(low, high), (default_qpos + offset).clip(low, high)
            )
            mujoco.mj_kinematics(model, data)
            row[:] = data.site(site).xpos
            if row[2] > postures.lowest_m and np.hypot(row[0], row[1]) > postures.nearest_m:
                break
    return positions
