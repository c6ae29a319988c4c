"""Reach and hold a pose, for any robot: `env.model` names its MJCF file.

The pose is the file's first keyframe, or its reference configuration where it has none; the actuators are the
file's own. It is a first task for a new robot, and a first check of its model.

Letters: N worlds, nq positions, nv velocities, A actuators.
"""

from __future__ import annotations

from pathlib import Path

import mujoco
import numpy as np
import torch
from torch import Tensor

from envs_gpu.interface import Targets
from envs_gpu.observation import ObservationTerm, last_action_term
from envs_gpu.parameters import Parameter
from envs_gpu.physics.base import PhysicsState
from envs_gpu.tasks import task
from envs_gpu.tasks.base import Episode, Outcome, Task
from envs_gpu.terms.pose import Pose, up_axis
from envs_gpu.user_model import UserModel, drop_sensors

EXAMPLE = Path(__file__).parents[1] / "assets" / "arm.xml"
CONTROL_DT_S = 0.02
NOISE = 0.1
"""Half the width of the uniform noise on the start: rad, m, rad/s and m/s."""
LIFT_M = 0.02
"""A floating base starts up to this much higher, and never lower, where its feet would be in the ground."""


@task("hold_pose")
class HoldPose(Task):
    """Observation `policy` `[N, nq + nv + A + nq]`.

    An action of zero is the keyframe's control, ±1 are the actuator's limits.

    Args:
        model: the robot, or its name as in `env.model`; None is an example, `envs_gpu/assets/arm.xml`.
    """

    parameters = (
        Parameter(
            "pose_std", 0.3, "rad or m", "error of a joint that leaves exp(-1) of the reward", low=1e-6
        ),
        Parameter("velocity_weight", -0.005, "1", "for the mean squared velocity", high=0.0),
        Parameter("control_weight", -0.01, "1", "for the mean squared action", high=0.0),
        Parameter("upright_weight", 0.5, "1", "for the cosine of a floating base's tilt", low=0.0),
        Parameter("upright_cosine_min", 0.5, "1", "a base that is tilted further has fallen", -1.0, 1.0),
        Parameter("height_share_min", 0.5, "1", "a base below this share of its height, too", 0.0, 1.0),
    )
    takes_model = True
    max_episode_steps = 500

    def __init__(self, model: str | UserModel | None = None) -> None:
        self.robot = UserModel.of(str(EXAMPLE) if model is None else model)
        self.source = self.robot.path

    def scene(self) -> mujoco.MjSpec:
        loaded = self.robot.load()
        self.notes = loaded.report()
        spec = loaded.spec
        drop_sensors(spec)  # nothing reads them, and they take time
        floats = any(joint.type == mujoco.mjtJoint.mjJNT_FREE for joint in spec.joints)
        ground = (mujoco.mjtGeom.mjGEOM_PLANE, mujoco.mjtGeom.mjGEOM_HFIELD)
        if floats and not any(geom.type in ground for geom in spec.worldbody.geoms):
            spec.worldbody.add_geom(name="floor", type=mujoco.mjtGeom.mjGEOM_PLANE, size=(0, 0, 0.05))
        return spec

    def bind(self, model: mujoco.MjModel, device: torch.device) -> None:
        self.substeps = max(1, round(CONTROL_DT_S / model.opt.timestep))
        super().bind(model, device)
        data = mujoco.MjData(model)
        if model.nkey:
            mujoco.mj_resetDataKeyframe(model, data, 0)
        self._pose = Pose(model, device)
        self._target = torch.tensor(data.qpos, device=device).unsqueeze(0)  # [1, nq]
        self._low, self._high = self.action_low, self.action_high
        hold = torch.tensor(data.ctrl, dtype=torch.float32, device=device)
        self._hold = torch.minimum(torch.maximum(hold, self._low), self._high)
        self.action_high = torch.ones_like(self._high)
        self.action_low = -self.action_high
        self._base = _floating_base(model, data)
        self._limits = torch.tensor(_position_limits(model), device=device)  # [2, nq]
        self._noise = torch.tensor(_noise(model, self._base), device=device)  # [2, nv]

    def control(self, action: Tensor) -> Tensor:
        reach = torch.where(action > 0, self._high - self._hold, self._hold - self._low)
        return self._hold + action * reach

    def targets(self) -> Targets:
        hold, low, high = self._hold.cpu(), self._low.cpu(), self._high.cpu()
        return Targets(hold, high - hold, low, high, scale_below=hold - low)

    def observation(self) -> dict[str, tuple[ObservationTerm, ...]]:
        num_positions, num_velocities = self._target.shape[-1], self._pose.num_velocities
        unit = "rad, or m on slides and of a floating base"
        terms = (
            ObservationTerm("positions", num_positions, lambda state, _: state.qpos, unit),
            ObservationTerm("velocities", num_velocities, lambda state, _: state.qvel, "rad/s, or m/s"),
            last_action_term(len(self.action_low)),
            ObservationTerm(
                "held_pose",
                num_positions,
                lambda state, _: self._target.to(state.qpos.dtype).expand_as(state.qpos),
                "as the positions",
                "command",
                commands=tuple(f"held_position_{i}" for i in range(num_positions)),
            ),
        )
        return {"policy": terms}

    def initial_state(self, episode: Episode) -> tuple[Tensor, Tensor]:
        unit = episode.random.uniform("start_position", self._pose.num_velocities)
        change = torch.lerp(self._noise[0], self._noise[1], unit)
        qpos = self._pose.displace(self._target.expand(len(unit), -1), change)
        qpos = torch.minimum(torch.maximum(qpos, self._limits[0]), self._limits[1])
        moves = self._noise[1] > 0
        speed = episode.random.uniform("start_velocity", self._pose.num_velocities, -NOISE, NOISE)
        return qpos, moves * speed

    def begin(self, state: PhysicsState, episode: Episode) -> dict[str, Tensor]:
        num_actions = len(self.action_low)
        return {"last_action": torch.zeros(len(state.qpos), num_actions, device=state.qpos.device)}

    def remember(self, state: PhysicsState, episode: Episode, action: Tensor) -> dict[str, Tensor]:
        return {"last_action": action.clone()}

    def outcome(self, state: PhysicsState, episode: Episode, action: Tensor) -> Outcome:
        target = self._target.to(state.qpos.dtype).expand_as(state.qpos)
        error, value = self._pose.difference(state.qpos, target), episode.parameters  # [N, nv]
        reward = {
            "pose": (-(error / value["pose_std"][:, None]).square().mean(-1)).exp(),
            "velocity": value["velocity_weight"] * state.qvel.square().mean(-1),
            "control": value["control_weight"].to(action.dtype) * action.square().mean(-1),
        }
        fallen = torch.zeros_like(reward["pose"], dtype=torch.bool)
        if self._base is not None:
            upright, height = self._uprightness(state.qpos), state.qpos[:, self._base + 2]
            reward["upright"] = value["upright_weight"] * upright
            held_height = target[:, self._base + 2]
            too_low = (held_height > 0) & (height < value["height_share_min"] * held_height)
            fallen = (upright < value["upright_cosine_min"]) | too_low
        return Outcome(reward, fallen, {"pose_error": error.square().mean(-1).sqrt()})

    def _uprightness(self, qpos: Tensor) -> Tensor:
        """Cosine of the angle between the base's up axis and that axis in the pose to hold; `[N]`."""
        assert self._base is not None
        turn = slice(self._base + 3, self._base + 7)
        return (up_axis(qpos[:, turn]) * up_axis(self._target[:, turn].to(qpos.dtype))).sum(-1)


def _floating_base(model: mujoco.MjModel, data: mujoco.MjData) -> int | None:
    """Position address of the free joint that carries what the actuators move; None for a fixed base."""
    mujoco.mj_forward(model, data)
    moved = model.dof_bodyid[data.moment_colind[: data.moment_rownnz.sum()]]
    roots = set(model.body_rootid[moved].tolist())
    for joint in np.flatnonzero(model.jnt_type == mujoco.mjtJoint.mjJNT_FREE):
        if int(model.jnt_bodyid[joint]) in roots:
            return int(model.jnt_qposadr[joint])
    return None


def _position_limits(model: mujoco.MjModel) -> np.ndarray:
    """Lowest and highest start of every position `[2, nq]`: the ranges of limited hinges and slides."""
    limits = np.tile([[-np.inf], [np.inf]], (1, model.nq))
    number = (model.jnt_type == mujoco.mjtJoint.mjJNT_HINGE) | (model.jnt_type == mujoco.mjtJoint.mjJNT_SLIDE)
    limited = number & (model.jnt_limited == 1)
    limits[:, model.jnt_qposadr[limited]] = model.jnt_range[limited].T
    return limits


def _noise(model: mujoco.MjModel, base: int | None) -> np.ndarray:
    """Bounds of the noise on the start `[2, nv]`; zero for free bodies other than the robot."""
    noise = np.tile([[-NOISE], [NOISE]], (1, model.nv))
    for joint in np.flatnonzero(model.jnt_type == mujoco.mjtJoint.mjJNT_FREE):
        first = model.jnt_dofadr[joint]
        if model.jnt_qposadr[joint] == base:
            noise[:, first + 2] = (0.0, LIFT_M)
        else:
            noise[:, first : first + 6] = 0.0
    return noise
