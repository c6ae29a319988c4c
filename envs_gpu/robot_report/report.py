"""One robot as `hold_pose` will train it: its scene, its start, and what each engine makes of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import mujoco
import numpy as np
import torch
from numpy.typing import NDArray

from envs_gpu.errors import EnvError
from envs_gpu.make import make_env, make_task
from envs_gpu.parity import judge, one_step_drift
from envs_gpu.render import Renderer, RenderError
from envs_gpu.scene.contents import Contents, contents_of, tear_of
from envs_gpu.sim_env import SimEnv
from envs_gpu.tasks.base import Task
from envs_gpu.user_model import UserModel

CPU = torch.device("cpu")
NUM_STARTS = 16
"""Worlds whose start states are looked at."""
HOLD_S = 2.0
"""Simulated time under an action of zero, at most."""
MOST_TIMESTEPS = 2_000
"""Of one world in that time: a robot with a timestep of 0.1 ms would take a minute otherwise."""
HELD = 0.1
"""rad or m: closer to the pose counts as held."""
DRIFT_WORLDS, DRIFT_STEPS = 4, 10
PICTURE_SIZE = (640, 480)


@dataclass(frozen=True)
class Engine:
    """What became of the robot on an engine."""

    name: str
    refused: str = ""
    """Why it cannot simulate the robot, in a sentence; empty where it can."""
    excess: float | None = None
    """Drift from C MuJoCo over one control step, as a multiple of what `envs_gpu.parity` allows; None for C
    MuJoCo itself, and where the robot is refused."""
    deviation: str = ""
    """Where the drift is beyond the rule for a cause that is known: how far, and the cause."""

    def __str__(self) -> str:
        if self.refused:
            return f"{self.name}: refused, {self.refused}"
        if self.excess is None:
            return f"{self.name}: runs"
        if self.deviation:
            return f"{self.name}: runs, with a known deviation from C: {self.deviation}"
        verdict = "within the parity rule" if self.excess <= 1 else "OUTSIDE of the parity rule"
        return f"{self.name}: runs, {verdict} ({self.excess:.2g} of 1)"


@dataclass(frozen=True)
class Hold:
    """What happens under an action of zero."""

    held_s: float
    """Simulated time."""
    error: float
    """Root mean square of the joints' distance from the pose at the end, in rad and m; the median world's."""
    ended: float
    """Share of the worlds whose episode ended meanwhile."""
    broken: float
    """Share of the worlds whose physics blew up meanwhile."""

    @property
    def holds(self) -> bool:
        """Whether the robot stays where it is."""
        return self.ended == 0.0 and self.error < HELD

    def __str__(self) -> str:
        verdict = "holds the pose" if self.holds else "does NOT hold the pose"
        ended = f", {self.ended:.0%} of the episodes end" if self.ended else ""
        broken = f", and the physics BLEW UP in {self.broken:.0%} of the worlds" if self.broken else ""
        return f"zero action {verdict}: {self.error:.2g} rad or m away after {self.held_s:g} s{ended}{broken}"


@dataclass(frozen=True)
class RobotReport:
    """What a user should know about a robot before training it."""

    file: str
    contents: Contents
    remarks: tuple[str, ...]
    """What is in the file, and what was added to it or assumed about it, as the start of a run tells it."""
    hold: Hold
    tear: float
    """Largest violation of an equality constraint over the start states, in m or rad."""
    engines: tuple[Engine, ...]
    took_s: float
    picture: NDArray[np.uint8] | None = field(default=None, repr=False, compare=False)
    """The start pose `[H, W, 3]`; None where nothing can be drawn."""

    def lines(self) -> list[str]:
        """The report as sentences."""
        found = self.contents
        lines = [*self.remarks, str(self.hold)]
        if found.loops:
            kinds = ", ".join(f"{number} {kind}" for kind, number in found.loops.items())
            lines.append(f"equality constraints: {kinds}; violated by at most {self.tear:.2g} at the start")
        if found.keyframes:
            lines.append(f"keyframes: {', '.join(found.keyframes)}")
        if found.num_flexes:
            lines.append(f"{found.num_flexes} flexible bodies")
        return [*lines, *map(str, self.engines)]

    def as_json(self) -> dict[str, Any]:
        """The report as JSON types, without the picture."""
        return {
            "file": self.file,
            "remarks": list(self.remarks),
            "bodies": self.contents.num_bodies,
            "joints": self.contents.joints,
            "actuators": [vars(actuator) for actuator in self.contents.actuators],
            "loops": self.contents.loops,
            "tear": self.tear,
            "holds_pose": self.hold.holds,
            "held_s": self.hold.held_s,
            "hold_error": self.hold.error,
            "broken": self.hold.broken,
            "engines": [vars(engine) for engine in self.engines],
            "took_s": round(self.took_s, 2),
        }


def report_on(
    model: str | UserModel,
    backends: Sequence[str] = ("mujoco",),
    keyframe: str | int | None = None,
    parameters: Mapping[str, float] = MappingProxyType({}),
    begins: Callable[[str], None] = lambda name: None,
) -> RobotReport:
    """Look at the robot of an MJCF file.

    Args:
        model: the robot, or its name as in `env.model`.
        backends: engines to try; `mujoco` is always looked at.
        keyframe: the pose, as in `env.keyframe`.
        parameters: of the task, as in `env.task`.
        begins: hears the name of each part before it begins.

    Raises:
        EnvError: the file is refused, with the reason in one line.
    """
    began_s = time.perf_counter()
    begins("scene")
    env = make_env(
        "hold_pose",
        backend="mujoco",
        num_envs=NUM_STARTS,
        device=CPU,
        model=model,
        keyframe=keyframe,
        task_parameters=parameters,
    )
    assert isinstance(env, SimEnv)
    scene = env.physics.model
    tear = max(tear_of(scene, qpos) for qpos in env.physics.state.qpos.double().numpy())
    begins("picture")
    picture = _draw(env)
    begins("pose")
    hold = _hold(env)
    env.close()
    engines = []
    for backend in dict.fromkeys(("mujoco", *backends)):
        begins(backend)
        engines.append(_try_engine(make_task("hold_pose", model, keyframe), scene, backend))
    took_s = time.perf_counter() - began_s
    return RobotReport(
        UserModel.of(model).name,
        contents_of(scene),
        env.notes,
        hold,
        tear,
        tuple(engines),
        took_s,
        picture,
    )


def _hold(env: SimEnv) -> Hold:
    zero = torch.zeros(env.num_envs, env.spec.action_dim)
    ended, broken = (torch.zeros(env.num_envs, dtype=torch.bool) for _ in range(2))
    held_s = min(HOLD_S, MOST_TIMESTEPS * env.physics.model.opt.timestep)
    for _ in range(round(held_s * env.spec.control_hz)):
        result = env.step(zero)
        broken |= result.metrics["physics/broken"].bool()
        ended |= result.terminated | broken
    error = result.metrics["pose_error"].median().item()
    return Hold(held_s, error, ended.float().mean().item(), broken.float().mean().item())


def _draw(env: SimEnv) -> NDArray[np.uint8] | None:
    try:
        renderer = Renderer(env.physics.model, *PICTURE_SIZE)
    except RenderError:
        return None
    picture = renderer.render(env.physics.state.qpos[0].double().numpy())
    renderer.close()
    return picture


def _try_engine(task: Task, scene: mujoco.MjModel, backend: str) -> Engine:
    if backend == "mujoco":
        return Engine(backend)
    try:
        drift = one_step_drift(task, backend, DRIFT_WORLDS, DRIFT_STEPS)
    except EnvError as error:
        return Engine(backend, refused=str(error))
    verdict = judge(drift, "hold_pose", task, backend, scene)
    return Engine(backend, "", drift.excess(), verdict.detail if verdict.status == "named" else "")
