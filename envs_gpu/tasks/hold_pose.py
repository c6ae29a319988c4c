"""Reach and hold a pose, for any robot: `env.model` names its MJCF file.

The pose is a keyframe of the file, or its reference configuration where it has none; the actuators are the
file's own. It is a first task for a new robot, and a first check of its model.

Letters: N worlds, nq positions, nv velocities, na activations, A actuators.
"""

from __future__ import annotations

from pathlib import Path

import mujoco
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs_gpu.errors import ModelError
from envs_gpu.interface import Targets
from envs_gpu.models import compile_model
from envs_gpu.observation import ObservationTerm, last_action_term
from envs_gpu.parameters import Parameter
from envs_gpu.physics.base import PhysicsState
from envs_gpu.scene.control_reach import narrow_motors
from envs_gpu.scene.falling import falling_roots, falling_slides, up_direction
from envs_gpu.scene.floor import provide_ground
from envs_gpu.scene.ground import ground_below
from envs_gpu.scene.keyframe import data_at, find_keyframe, move_mocap_bodies
from envs_gpu.scene.start_noise import close_loops, position_limits, start_noise
from envs_gpu.tasks import task
from envs_gpu.tasks.base import Episode, Outcome, Task
from envs_gpu.terms.pose import Pose, limited_turn, rotation_matrix
from envs_gpu.user_model import UserModel, drop_sensors

EXAMPLE = Path(__file__).parents[1] / "assets" / "arm.xml"
CONTROL_DT_S = 0.02
_LEAST_HEIGHT_M = 1e-3
"""A base that starts no higher above the ground has no height to lose."""


@task("hold_pose")
class HoldPose(Task):
    """Observation `policy` `[N, nq + nv + na + A + nq]`.

    An action of zero is the keyframe's control, ±1 are the actuator's limits. A motor that would turn its
    joint too fast in one control step is used in part (`scene/control_reach.py`).

    Args:
        model: the robot, or its name as in `env.model`; None is an example, `envs_gpu/assets/arm.xml`.
        keyframe: name or number of the keyframe to hold, `qpos0` for the reference configuration; None takes
            the first keyframe, and the reference configuration where there is none.
    """

    parameters = (
        Parameter(
            "pose_std", 0.3, "rad or m", "error of a joint that leaves exp(-1) of the reward", low=1e-6
        ),
        Parameter("velocity_weight", -0.005, "1", "for the mean squared velocity, if small", high=0.0),
        Parameter("velocity_cost_max", 1.0, "1", "the most that velocity costs in a step", low=1e-6),
        Parameter("control_weight", -0.01, "1", "for the mean squared action", high=0.0),
        Parameter("upright_weight", 0.5, "1", "for the cosine of a floating base's tilt", low=0.0),
        Parameter("upright_cosine_min", 0.5, "1", "a base that is tilted further has fallen", -1.0, 1.0),
        Parameter("height_share_min", 0.5, "1", "a base below this share of its height, too", 0.0, 1.0),
        Parameter("start_noise_scale", 1.0, "1", "factor on the noise of the start", 0.0, 10.0),
    )
    takes_model = True
    max_episode_steps = 500

    def __init__(self, model: str | UserModel | None = None, keyframe: str | int | None = None) -> None:
        self.robot = UserModel.of(str(EXAMPLE) if model is None else model)
        self.source = self.robot.path
        self._keyframe = keyframe
        self._scene: mujoco.MjSpec | None = None

    def scene(self) -> mujoco.MjSpec:
        if self._scene is None:
            self._scene = self._make_scene()
        return self._scene.copy()

    def _make_scene(self) -> mujoco.MjSpec:
        loaded = self.robot.load()
        spec, notes = loaded.spec, loaded.report()
        drop_sensors(spec)  # nothing reads them, and they take time
        model = compile_model(spec, self.source)
        data = self._start(model)
        move_mocap_bodies(spec, model, data)
        narrowed = narrow_motors(spec, model, data, CONTROL_DT_S, self.robot.limits)
        self.notes = (*notes, *narrowed, *provide_ground(spec, model, data, _robot_roots(model, data)))
        return spec

    def _start(self, model: mujoco.MjModel) -> mujoco.MjData:
        """The pose, with its loops closed."""
        data = data_at(model, find_keyframe(model, self._keyframe, self.source))
        close_loops(model, data)
        return data

    def bind(self, model: mujoco.MjModel, device: torch.device) -> None:
        self.substeps = max(1, round(CONTROL_DT_S / model.opt.timestep))
        super().bind(model, device)
        held = data_at(model, find_keyframe(model, self._keyframe, self.source))
        start = self._start(model)
        roots = _robot_roots(model, start)
        robot = np.flatnonzero(np.isin(model.body_rootid[model.dof_bodyid], roots))
        if not len(robot):
            problem = "nothing that its actuators act on can move"
            raise ModelError(f"{self.source}: {problem}; add joints, or actuators on the joints that it has")
        self._pose = Pose(model, device)
        self._target = torch.tensor(held.qpos, device=device).unsqueeze(0)  # [1, nq]
        self._hold(held.ctrl, device)
        self._robot_dofs = torch.tensor(robot, device=device)
        self._bind_base(model, start, roots, device)
        self._bind_start(model, start, device)

    def _hold(self, ctrl: NDArray[np.float64], device: torch.device) -> None:
        """Make `ctrl` `[A]`, within its limits, an action of zero, and the limits ±1."""
        self._low, self._high = self.action_low, self.action_high
        hold = torch.tensor(ctrl, dtype=torch.float32, device=device)
        self._center = torch.minimum(torch.maximum(hold, self._low), self._high)
        self.action_high = torch.ones_like(self._high)
        self.action_low = -self.action_high

    def _bind_base(
        self, model: mujoco.MjModel, start: mujoco.MjData, roots: list[int], device: torch.device
    ) -> None:
        """What floats, which way is up, and how high the base is above what is below it."""
        self._base: int | None = _floating_base(model, roots)
        self._height_m: float | None = None
        up = up_direction(model)
        self._falls = False
        self._up = torch.tensor((0.0, 0.0, 1.0) if up is None else up, dtype=torch.float64, device=device)
        if self._base is None or up is None:
            return
        root = model.jnt_bodyid[model.jnt_qposadr == self._base].item()
        self._falls = root in falling_roots(model, start)
        ground = ground_below(model, start, root) if self._falls else None
        height_m = None if ground is None else float(start.xpos[root] @ up) - ground.height_m
        if height_m is not None and height_m > _LEAST_HEIGHT_M:
            self._height_m = height_m

    def _bind_start(self, model: mujoco.MjModel, start: mujoco.MjData, device: torch.device) -> None:
        """Where episodes start: the pose, the noise on it, and the limits that hold in spite of it."""

        def on_device(values: NDArray[np.float64]) -> Tensor:
            return torch.tensor(values, device=device)

        slides = falling_slides(model, start)
        noise = start_noise(model, start, self._base, self._up.cpu().numpy(), slides)
        self.start_act = tuple(start.act.tolist())
        self._start_qpos, self._start_qvel = on_device(start.qpos)[None], on_device(start.qvel)[None]
        self._noise = on_device(np.stack((noise.low, noise.high)))  # [2, nv]
        self._speed = on_device(noise.speed)  # [nv]
        self._tangent, self._bend = on_device(noise.tangent), on_device(noise.bend)  # [K, nv]
        self._pool_speed = on_device(noise.velocity)  # [K, nv]
        limits = position_limits(model)
        coupled = np.isin(model.jnt_dofadr, np.flatnonzero(noise.coupled))  # their pool is within limits
        limits[:, model.jnt_qposadr[coupled]] = [[-np.inf], [np.inf]]
        self._limits = on_device(limits)  # [2, nq]
        balls = (model.jnt_type == mujoco.mjtJoint.mjJNT_BALL) & (model.jnt_limited == 1) & ~coupled
        ends = zip(model.jnt_qposadr[balls].tolist(), model.jnt_range[balls, 1].tolist(), strict=True)
        self._balls = list(ends)  # position address, and largest angle

    def control(self, action: Tensor) -> Tensor:
        reach = torch.where(action > 0, self._high - self._center, self._center - self._low)
        return self._center + action * reach

    def targets(self) -> Targets:
        hold, low, high = self._center.cpu(), self._low.cpu(), self._high.cpu()
        return Targets(hold, high - hold, low, high, scale_below=hold - low)

    def observation(self) -> dict[str, tuple[ObservationTerm, ...]]:
        num_positions, num_velocities = self._target.shape[-1], self._pose.num_velocities
        unit = "rad, or m on slides and of a floating base"
        terms = (
            ObservationTerm("positions", num_positions, lambda state, _: state.qpos, unit),
            ObservationTerm("velocities", num_velocities, lambda state, _: state.qvel, "rad/s, or m/s"),
            *self._activations(),
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

    def _activations(self) -> tuple[ObservationTerm, ...]:
        """What actuators remember, where they do: it decides what they do next."""
        width = len(self.start_act)
        if not width:
            return ()
        return (ObservationTerm("activations", width, lambda state, _: state.act, "as the actuator has it"),)

    def initial_state(self, episode: Episode) -> tuple[Tensor, Tensor]:
        num_dofs = self._pose.num_velocities
        unit = episode.random.uniform("start_position", num_dofs)
        speed = self._speed * episode.random.uniform("start_velocity", num_dofs, -1.0, 1.0)
        scale = torch.ones_like(unit[:, :1])  # parity starts without parameters
        if "start_noise_scale" in episode.parameters:
            scale = episode.parameters["start_noise_scale"].to(unit.dtype)[:, None]
        change = scale * torch.lerp(self._noise[0], self._noise[1], unit)
        if len(self._tangent):
            row = (episode.random.uniform("start_loop", 1)[:, 0] * len(self._tangent)).long()
            row = row.clamp(max=len(self._tangent) - 1)
            change = change + scale * self._tangent[row] + scale.square() * self._bend[row]
            speed = speed + self._pool_speed[row]
        qpos = self._pose.displace(self._start_qpos.expand(len(unit), -1), change)
        qpos = torch.minimum(torch.maximum(qpos, self._limits[0]), self._limits[1])
        return limited_turn(qpos, self._balls), self._start_qvel + scale * speed

    def begin(self, state: PhysicsState, episode: Episode) -> dict[str, Tensor]:
        num_actions = len(self.action_low)
        return {"last_action": torch.zeros(len(state.qpos), num_actions, device=state.qpos.device)}

    def remember(self, state: PhysicsState, episode: Episode, action: Tensor) -> dict[str, Tensor]:
        return {"last_action": action.clone()}

    def outcome(self, state: PhysicsState, episode: Episode, action: Tensor) -> Outcome:
        target = self._target.to(state.qpos.dtype).expand_as(state.qpos)
        error, value = self._pose.difference(state.qpos, target)[:, self._robot_dofs], episode.parameters
        most = value["velocity_cost_max"]
        speed = value["velocity_weight"] * state.qvel[:, self._robot_dofs].square().mean(-1)
        reward = {
            "pose": (-(error / value["pose_std"][:, None]).square().mean(-1)).exp(),
            "velocity": most * (speed / most).expm1(),  # its weight near zero, and -velocity_cost_max at most
            "control": value["control_weight"].to(action.dtype) * action.square().mean(-1),
        }
        fallen = torch.zeros_like(reward["pose"], dtype=torch.bool)
        if self._base is not None:
            upright = self._uprightness(state.qpos)
            reward["upright"] = value["upright_weight"] * upright
            if self._falls:
                fallen = upright < value["upright_cosine_min"]
            if self._height_m is not None:
                fallen = fallen | (self._height(state.qpos) < value["height_share_min"] * self._height_m)
        return Outcome(reward, fallen, {"pose_error": error.square().mean(-1).sqrt()})

    def _uprightness(self, qpos: Tensor) -> Tensor:
        """Cosine of the angle between the base's up axis and that axis in the pose to hold; `[N]`."""
        assert self._base is not None
        turn, up = slice(self._base + 3, self._base + 7), self._up.to(qpos.dtype)
        now, held = (
            (rotation_matrix(pose[:, turn]) * up[:, None]).sum(-2)
            for pose in (qpos, self._target.to(qpos.dtype))
        )
        return (now * held).sum(-1)

    def _height(self, qpos: Tensor) -> Tensor:
        """Height of the base, m, over what was below it at the start; `[N]`."""
        assert self._base is not None
        assert self._height_m is not None
        place = slice(self._base, self._base + 3)
        moved = qpos[:, place] - self._start_qpos[:, place].to(qpos.dtype)
        return self._height_m + (moved * self._up.to(qpos.dtype)).sum(-1)


def _robot_roots(model: mujoco.MjModel, data: mujoco.MjData) -> list[int]:
    """The root bodies of what the actuators act on."""
    bodies = {*model.dof_bodyid[data.moment_colind[: data.moment_rownnz.sum()]].tolist()}
    on_body = model.actuator_trntype == mujoco.mjtTrn.mjTRN_BODY  # adhesion moves nothing until it touches
    bodies |= {*model.actuator_trnid[on_body, 0].tolist()}
    return sorted({int(model.body_rootid[body]) for body in bodies} - {0})


def _floating_base(model: mujoco.MjModel, roots: list[int]) -> int | None:
    """Position address of the free joint that carries what the actuators move; None for a fixed base."""
    for joint in np.flatnonzero(model.jnt_type == mujoco.mjtJoint.mjJNT_FREE):
        if int(model.jnt_bodyid[joint]) in roots:
            return int(model.jnt_qposadr[joint])
    return None
