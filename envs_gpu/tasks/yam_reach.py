"""Bring the YAM's tool to targets that change, and hold it there."""

from __future__ import annotations

from dataclasses import dataclass, replace

import mujoco
import numpy as np
import torch
from torch import Tensor

from envs_gpu.interface import PolicyInterface, Term
from envs_gpu.parameters import Parameter
from envs_gpu.physics.base import PhysicsState
from envs_gpu.robots import get_robot
from envs_gpu.tasks import task
from envs_gpu.tasks._arm import Arm
from envs_gpu.tasks.base import Episode, Outcome
from envs_gpu.terms.manipulation import closeness, distance


@dataclass(frozen=True)
class Targets:
    """Where the tool is asked to be: where some posture puts it."""

    joint_offset_rad: float = 0.9
    """Postures are drawn within ± this around the default pose, so that actions reach them."""
    lowest_m: float = 0.08
    nearest_m: float = 0.18
    """From the base's vertical axis: nearer, the gripper would meet the arm."""
    num_postures: int = 4096


@task("yam_reach")
class YamReach(Arm):
    """Observation groups, noise-free:

    `policy` `[N, 21]`: joint positions relative to the default pose (6), joint velocities (6), target in the
    base's frame (3), last action (6).
    `critic` `[N, 30]`: all of it, then the tool's position (3), its velocity (3), and the way from it to the
    target (3).

    The gripper is shut and stays so.
    """

    robot = get_robot("yam")
    targets = Targets()
    parameters = (
        *Arm.parameters,
        Parameter("near_weight", 1.0, "1/s", "the tool is near the target", low=0.0),
        Parameter("precise_weight", 2.0, "1/s", "the tool is at the target", low=0.0),
        Parameter(
            "near_scale_m", 0.25, "m", "distance that leaves 0.24 of the reward for being near", low=1e-3
        ),
        Parameter("precise_scale_m", 0.05, "m", "the same of the reward for precision", low=1e-3),
        Parameter("reached_m", 0.02, "m", "distance that counts as reached", low=0.0),
        Parameter("target_interval_s", 3.0, "s", "a new one comes at random, after this on average", 1e-3),
    )
    max_episode_steps = 500
    # Taken about the arm's centre of mass, as MuJoCo does, the wrist's 0.0027 kg m² have six digits in
    # float32, and its motor accelerates them by 3800 rad/s². C MuJoCo with inertias a millionth off is 1.2
    # times as far from itself as is allowed without this, and Warp 1.3 times.
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
            model, self.robot.end_effectors[0], self._default_qpos.cpu().numpy(), self.targets
        )
        self._reachable_m = torch.tensor(tool, dtype=torch.float32, device=device)

    def interface(self) -> PolicyInterface:
        return replace(super().interface(), commands=("target_x_m", "target_y_m", "target_z_m"))

    def _seen_terms(self) -> tuple[Term, ...]:
        return (Term("target", 3, "m", "command", low=-2.0, high=2.0),)

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

    def observe(self, state: PhysicsState, episode: Episode) -> dict[str, Tensor]:
        target, tool = episode.memory["target"], self.read(state, "tool_position")
        policy = (*self.joints(state), target, episode.memory["last_action"])
        privileged = (tool, self.read(state, "tool_velocity"), target - tool)
        return {"policy": torch.cat(policy, -1), "critic": torch.cat((*policy, *privileged), -1)}

    def outcome(self, state: PhysicsState, episode: Episode, action: Tensor) -> Outcome:
        distance_m = distance(self.read(state, "tool_position"), episode.memory["target"])
        terms = {
            "near": closeness(distance_m, episode.parameters["near_scale_m"]),
            "precise": closeness(distance_m, episode.parameters["precise_scale_m"]),
        }
        terms |= self.effort_terms(state, action, episode.memory["last_action"])
        never = torch.zeros_like(distance_m, dtype=torch.bool)
        measures = {"distance_m": distance_m, "reached": distance_m < episode.parameters["reached_m"]}
        return Outcome(self.weigh(terms, episode.parameters), never, measures)

    def _draw_target(self, episode: Episode) -> Tensor:
        """One of the reachable positions `[N, 3]`."""
        number = (episode.random.uniform("target", 1) * len(self._reachable_m)).long().squeeze(-1)
        return self._reachable_m[number]


def reachable_positions(
    model: mujoco.MjModel, site: str, default_qpos: np.ndarray, targets: Targets
) -> np.ndarray:
    """Where forward kinematics puts a site in random postures, always the same ones; `[K, 3]`, m."""
    low, high = model.jnt_range.T
    offset = targets.joint_offset_rad
    rng, data = np.random.default_rng(0), mujoco.MjData(model)
    positions = np.empty((targets.num_postures, 3))
    for row in positions:
        while True:
            data.qpos[:] = rng.uniform(
                (default_qpos - offset).clip(low, high), (default_qpos + offset).clip(low, high)
            )
            mujoco.mj_kinematics(model, data)
            row[:] = data.site(site).xpos
            if row[2] > targets.lowest_m and np.hypot(row[0], row[1]) > targets.nearest_m:
                break
    return positions
