"""Grasp a cube with the YAM, lift it off the table and carry it to a goal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import mujoco
import torch
from torch import Tensor

from envs_gpu.goals import Goals
from envs_gpu.observation import ObservationTerm, remembered
from envs_gpu.parameters import Parameter
from envs_gpu.physics.base import PhysicsState
from envs_gpu.robots import get_robot
from envs_gpu.tasks import task
from envs_gpu.tasks._arm import GRIPPER, TABLE, Arm, pad_names
from envs_gpu.tasks.base import Episode, Outcome
from envs_gpu.terms.contact import add_normal_force_sensor, normal_force
from envs_gpu.terms.manipulation import closeness, distance, pinch_force, progress, rotation_columns

Box = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Cube:
    """The cube that is grasped, and where it starts."""

    half_size_m: float = 0.02
    mass_kg: float = 0.06
    sinks_in_m: float = 1e-4
    """How deep it starts in the table, whose contact is soft. At a depth of zero, rounding would decide
    whether they touch."""
    start_m: Box = ((0.27, 0.39), (-0.1, 0.1))
    """Ranges of x and y in which it starts, with a random yaw."""
    table_m: Box = ((0.1, 0.6), (-0.35, 0.35))
    """Ranges of x and y; beyond them the cube is off the table."""


@task("yam_lift")
class YamLift(Arm):
    """Observation groups: `policy` `[N, 41]` and `critic` `[N, 52]`. Positions are in the base's frame.

    The seventh action moves both fingers.
    """

    # The tool above the table, looking down.
    robot = replace(
        get_robot("yam"),
        default_pose=(
            ("joint2", 1.95),
            ("joint3", 1.65),
            ("joint4", -1.27),
            ("left_finger", 0.0375),
            ("right_finger", -0.0375),
        ),
    )
    cube = Cube()
    parameters = (
        *Arm.parameters,
        Parameter("reach_weight", 1.0, "1/s", "the tool is at the cube", low=0.0),
        Parameter("pinch_weight", 1.0, "1/s", "both fingers press the cube", low=0.0),
        Parameter("lift_weight", 4.0, "1/s", "the cube is above the table", low=0.0),
        Parameter("carry_weight", 6.0, "1/s", "a lifted cube is near its goal", low=0.0),
        Parameter("precise_weight", 4.0, "1/s", "a lifted cube is at its goal", low=0.0),
        Parameter("lost_reward", -1.0, "1", "once, for a cube off the table", high=0.0),
        Parameter(
            "reach_scale_m", 0.1, "m", "distance that leaves 0.24 of the reward for reaching", low=1e-3
        ),
        Parameter("carry_scale_m", 0.2, "m", "the same of the reward for carrying", low=1e-3),
        Parameter("precise_scale_m", 0.05, "m", "the same of the reward for precision", low=1e-3),
        Parameter("pinch_force_n", 1.0, "N", "force of the weaker finger that earns all", low=1e-3),
        Parameter("lift_height_m", 0.04, "m", "height above where it lies that is lifted", low=1e-3),
        Parameter("at_goal_m", 0.02, "m", "distance that counts as at the goal", low=0.0),
        Parameter("goal_x_min_m", 0.28, "m", "goals are uniform in a box", -2.0, 2.0),
        Parameter("goal_x_max_m", 0.4, "m", "goals are uniform in a box", -2.0, 2.0),
        Parameter("goal_y_min_m", -0.12, "m", "goals are uniform in a box", -2.0, 2.0),
        Parameter("goal_y_max_m", 0.12, "m", "goals are uniform in a box", -2.0, 2.0),
        Parameter("goal_z_min_m", 0.1, "m", "goals are uniform in a box", -2.0, 2.0),
        Parameter("goal_z_max_m", 0.22, "m", "goals are uniform in a box", -2.0, 2.0),
    )
    max_episode_steps = 250

    def _furnish(self, spec: mujoco.MjSpec) -> None:
        spec.delete(spec.actuator("right_finger"))  # one motor moves both, through the equality
        half = self.cube.half_size_m
        body = spec.worldbody.add_body(name="cube", pos=(0.33, 0, half))
        body.add_freejoint(name="cube")
        body.add_geom(
            name="cube",
            type=mujoco.mjtGeom.mjGEOM_BOX,
            size=[half] * 3,
            mass=self.cube.mass_kg,
            rgba=(0.85, 0.3, 0.2, 1),
            contype=0,
            conaffinity=TABLE | GRIPPER,
            condim=3,
            friction=(1.0, 0.005, 0.0001),
        )
        for names in pad_names().values():
            for name in names:
                add_normal_force_sensor(spec, name, "cube", 1)

    def bind(self, model: mujoco.MjModel, device: torch.device) -> None:
        super().bind(model, device)
        # A little wider than the cube's diagonal, so that exploration noise alone grasps and releases it.
        self._neutral_target[-1] = 0.75 * self._target_high[-1]
        self._action_scale[-1] = self._target_high[-1]
        self._finger_pads = [self.sensor_block(f"contact_{body}") for body in pad_names()]
        self._start_m, self._table_m = (
            torch.tensor(box, device=device, dtype=torch.float64).T
            for box in (self.cube.start_m, self.cube.table_m)
        )

    def _scene_terms(self) -> tuple[ObservationTerm, ...]:
        goal = remembered("goal")
        names = ("goal_x_m", "goal_y_m", "goal_z_m")
        return (
            ObservationTerm("cube_position", 3, lambda state, _: self._cube(state), "m"),
            ObservationTerm("cube_axes", 6, self._cube_axes, low=-1.1, high=1.1),
            ObservationTerm("tool_to_cube", 3, self._tool_to_cube, "m"),
            ObservationTerm("goal", 3, goal, "m", "command", low=-2.0, high=2.0, commands=names),
            ObservationTerm(
                "cube_to_goal", 3, lambda state, episode: goal(state, episode) - self._cube(state), "m"
            ),
        )

    def _privileged_terms(self) -> tuple[ObservationTerm, ...]:
        first = self._num_joints
        return (
            ObservationTerm("cube_velocity", 3, lambda state, _: state.qvel[:, first : first + 3], "m/s"),
            ObservationTerm("cube_turn", 3, lambda state, _: state.qvel[:, first + 3 :], "rad/s"),
            ObservationTerm("tool_velocity", 3, self.sensor_reading("tool_velocity"), "m/s"),
            ObservationTerm("finger_force", 2, self._normal_forces, "10 N"),
        )

    def goals(self) -> Goals:
        """The cube is to be where the goal is."""
        return Goals(
            goal="goal",
            achieved="cube_position",
            rewards=self._goal_rewards,
            parameters=(
                *("carry_weight", "precise_weight", "carry_scale_m", "precise_scale_m"),
                "lift_height_m",
            ),
            dependent={"cube_to_goal": lambda cube, goal: goal - cube},
        )

    def initial_state(self, episode: Episode) -> tuple[Tensor, Tensor]:
        random, noise = episode.random, self.initial_noise_rad
        unit = random.uniform("start_joints", len(self.action_low) - 1, -noise, noise)
        joints = self._default_qpos.expand(len(unit), -1).clone()
        joints[:, : unit.shape[-1]] += unit
        # Yaw within ±45°: after a quarter turn the cube is the same.
        half_yaw = random.uniform("cube_yaw", 1, -torch.pi / 8, torch.pi / 8)
        zero = torch.zeros_like(half_yaw)
        place = _uniform(random.uniform("cube_place", 2), *self._start_m)
        rest = torch.full_like(zero, self.cube.half_size_m - self.cube.sinks_in_m)
        qpos = torch.cat((joints, place, rest, half_yaw.cos(), zero, zero, half_yaw.sin()), -1)
        return qpos, torch.zeros_like(qpos[:, 1:])

    def begin(self, state: PhysicsState, episode: Episode) -> dict[str, Tensor]:
        low, high = (
            torch.stack([episode.parameters[f"goal_{axis}_{end}_m"] for axis in "xyz"], -1)
            for end in ("min", "max")
        )
        goal = _uniform(episode.random.uniform("goal", 3), low, high).float()
        return {"goal": goal, "last_action": goal.new_zeros(len(goal), len(self.action_low))}

    def remember(self, state: PhysicsState, episode: Episode, action: Tensor) -> dict[str, Tensor]:
        return {"goal": episode.memory["goal"].clone(), "last_action": action.clone()}

    def outcome(self, state: PhysicsState, episode: Episode, action: Tensor) -> Outcome:
        goal, cube = episode.memory["goal"], self._cube(state)
        goal_distance_m, height_m = distance(cube, goal), self._height_m(cube)
        value = episode.parameters
        low, high = self._table_m
        lost = ((cube[:, :2] < low) | (cube[:, :2] > high)).any(-1) | (height_m < -self.cube.half_size_m)
        terms = {
            "reach": closeness(distance(cube, self.read(state, "tool_position")), value["reach_scale_m"]),
            "pinch": progress(pinch_force(*self._finger_forces(state)), 0.0, value["pinch_force_n"]),
            "lift": progress(height_m, 0.0, value["lift_height_m"]),
        }
        reward = self.weigh(terms, value) | self._goal_rewards(cube, goal, value)
        reward |= self.weigh(self.effort_terms(state, action, episode.memory["last_action"]), value)
        reward["lost"] = value["lost_reward"] * lost
        measures = {
            "goal_distance_m": goal_distance_m,
            "lifted": height_m > value["lift_height_m"],
            "at_goal": goal_distance_m < value["at_goal_m"],
            "lost": lost,
        }
        return Outcome(reward, lost, measures)

    def _goal_rewards(
        self, cube: Tensor, goal: Tensor, parameters: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """What it is worth that the cube is at `cube` `[N, 3]`, weighted, name -> `[N]`."""
        goal_distance_m = distance(cube, goal)
        lifted = progress(self._height_m(cube), 0.0, parameters["lift_height_m"])
        terms = {
            "carry": lifted * closeness(goal_distance_m, parameters["carry_scale_m"]),
            "precise": lifted * closeness(goal_distance_m, parameters["precise_scale_m"]),
        }
        return self.weigh(terms, parameters)

    def _height_m(self, cube: Tensor) -> Tensor:
        """How far a cube at `cube` `[N, 3]` is above where it lies `[N]`."""
        return cube[:, 2] - self.cube.half_size_m

    def _cube(self, state: PhysicsState) -> Tensor:
        """The cube's position `[N, 3]`, m."""
        return state.qpos[:, self._num_joints : self._num_joints + 3]

    def _cube_axes(self, state: PhysicsState, _: Episode) -> Tensor:
        """The cube's x and y axes `[N, 6]`."""
        return rotation_columns(state.qpos[:, self._num_joints + 3 :])

    def _tool_to_cube(self, state: PhysicsState, _: Episode) -> Tensor:
        """The way from the tool to the cube `[N, 3]`, m."""
        return self._cube(state) - self.read(state, "tool_position")

    def _normal_forces(self, state: PhysicsState, _: Episode) -> Tensor:
        """Force of each finger on the cube `[N, 2]`, in 10 N."""
        return 0.1 * torch.stack([normal_force(finger) for finger in self._finger_forces(state)], -1)

    def _finger_forces(self, state: PhysicsState) -> list[Tensor]:
        """Readings of the contact sensors of the left and of the right finger."""
        return [state.sensordata[:, pads] for pads in self._finger_pads]


def _uniform(unit: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """`unit` `[N, D]` in [0, 1) stretched to between `low` and `high`, `[D]` or `[N, D]`."""
    return low + (high - low) * unit
