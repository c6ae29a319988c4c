"""One robot as `hold_pose` will train it: its scene, its start, and what each engine makes of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import mujoco
import numpy as np
import torch
from numpy.typing import NDArray

from envs_gpu.errors import EnvError
from envs_gpu.make import make_env, make_task
from envs_gpu.parity import judge, one_step_drift
from envs_gpu.physics.base import UnsupportedModelError
from envs_gpu.render import Renderer, RenderError
from envs_gpu.robot_report.scene import Contents, contents_of, tear_of
from envs_gpu.sim_env import SimEnv
from envs_gpu.user_model import UserModel

CPU = torch.device("cpu")
NUM_STARTS = 16
"""Worlds whose start states are looked at."""
HOLD_S = 2.0
"""Simulated time under an action of zero."""
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
class RobotReport:
    """What a user should know about a robot before training it."""

    file: str
    contents: Contents
    remarks: tuple[str, ...]
    """What was added to the file or assumed about it: limits, a floor."""
    hold_error: float
    """Root mean square of the joints' distance from the pose, in rad and m, after `HOLD_S` at zero action."""
    hold_share: float
    """Share of the worlds whose episode did not end meanwhile."""
    tear: float
    """Largest violation of an equality constraint over the start states, in m or rad."""
    engines: tuple[Engine, ...]
    took_s: float
    picture: NDArray[np.uint8] | None = field(default=None, repr=False, compare=False)
    """The start pose `[H, W, 3]`; None where nothing can be drawn."""

    @property
    def holds_pose(self) -> bool:
        """Whether an action of zero keeps the robot where it is."""
        return self.hold_share == 1.0 and self.hold_error < 0.1

    def lines(self) -> list[str]:
        """The report as sentences."""
        found = self.contents
        joints = ", ".join(f"{number} {kind}" for kind, number in found.joints.items()) or "no joints"
        lines = [
            f"{found.num_bodies} bodies ({found.mass_kg:.4g} kg), joints: {joints}; {found.num_dofs} degrees "
            f"of freedom, {len(found.actuators)} actuators, timestep {found.timestep_s:g} s",
            *self.remarks,
            self._about_pose(),
        ]
        if found.loops:
            kinds = ", ".join(f"{number} {kind}" for kind, number in found.loops.items())
            lines.append(f"equality constraints: {kinds}; violated by at most {self.tear:.2g} at the start")
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
            "holds_pose": self.holds_pose,
            "hold_error": self.hold_error,
            "engines": [vars(engine) for engine in self.engines],
            "took_s": round(self.took_s, 2),
        }

    def _about_pose(self) -> str:
        verdict = "holds the pose" if self.holds_pose else "does NOT hold the pose"
        ended = f", {1 - self.hold_share:.0%} of the episodes end" if self.hold_share < 1 else ""
        return f"zero action {verdict}: {self.hold_error:.2g} rad or m away after {HOLD_S:g} s{ended}"


def report_on(
    model: str | UserModel,
    backends: Sequence[str] = ("mujoco",),
    begins: Callable[[str], None] = lambda name: None,
) -> RobotReport:
    """Look at the robot of an MJCF file.

    Args:
        model: the robot, or its name as in `env.model`.
        backends: engines to try; `mujoco` is always looked at.
        begins: hears the name of each part before it begins.

    Raises:
        EnvError: the file is refused, with the reason in one line.
    """
    began_s = time.perf_counter()
    begins("scene")
    env = cast(SimEnv, make_env("hold_pose", backend="mujoco", num_envs=NUM_STARTS, device=CPU, model=model))
    scene = env.physics.model
    tear = max(tear_of(scene, qpos) for qpos in env.physics.state.qpos.double().numpy())
    begins("picture")
    picture = _draw(env)
    begins("pose")
    hold_error, hold_share = _hold(env)
    env.close()
    engines = []
    for backend in dict.fromkeys(("mujoco", *backends)):
        begins(backend)
        engines.append(_try_engine(model, backend, scene))
    took_s = time.perf_counter() - began_s
    return RobotReport(
        UserModel.of(model).name,
        contents_of(scene),
        tuple(env.notes),
        hold_error,
        hold_share,
        tear,
        tuple(engines),
        took_s,
        picture,
    )


def _hold(env: SimEnv) -> tuple[float, float]:
    """Distance from the pose and share of the worlds still in their first episode, after `HOLD_S`."""
    zero = torch.zeros(env.num_envs, env.spec.action_dim)
    ended = torch.zeros(env.num_envs, dtype=torch.bool)
    for _ in range(round(HOLD_S * env.spec.control_hz)):
        result = env.step(zero)
        ended |= result.terminated
    return float(result.metrics["pose_error"].median()), 1.0 - float(ended.float().mean())


def _draw(env: SimEnv) -> NDArray[np.uint8] | None:
    try:
        renderer = Renderer(env.physics.model, *PICTURE_SIZE)
    except RenderError:
        return None
    picture = renderer.render(env.physics.state.qpos[0].double().numpy())
    renderer.close()
    return picture


def _try_engine(model: str | UserModel, backend: str, scene: mujoco.MjModel) -> Engine:
    if backend == "mujoco":
        return Engine(backend)
    task = make_task("hold_pose", model)
    try:
        drift = one_step_drift(task, backend, DRIFT_WORLDS, DRIFT_STEPS)
    except (UnsupportedModelError, EnvError) as error:
        return Engine(backend, refused=str(error))
    verdict = judge(drift, "hold_pose", task, backend, scene)
    return Engine(
        backend, excess=drift.excess(), deviation=verdict.detail if verdict.status == "named" else ""
    )
