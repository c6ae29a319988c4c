"""How far an engine's physics is from that of the referee, C MuJoCo, over one control step.

C MuJoCo steps a trajectory under random actions. At every control step the engine starts from C MuJoCo's
state, so errors cannot accumulate. Float32 precision alone does not say how large an error may be: a contact
that begins or a stiff joint amplifies a small difference. Therefore a control group is measured: C MuJoCo
itself, started from the same state with an error of one float32 bit. At each of `QUANTILES` over the states,
the engine's error may be at most `FACTOR` times the control group's, plus `FLOOR`.

The largest quantile is 99 %: in the worst of many states, rounding decides whether a contact begins, so the
maximum mostly depends on how many states were tried. It is reported all the same.

Letters: T control steps, N worlds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal, NamedTuple

import mujoco
import numpy as np
import torch
from torch import Tensor

from envs_gpu.physics import BACKENDS, _pairs
from envs_gpu.physics._solver import with_newton
from envs_gpu.physics.base import Physics, PhysicsOptions, scene_text
from envs_gpu.random import WorldRandom
from envs_gpu.tasks.base import Episode, Task

QUANTILES = (0.5, 0.9, 0.99)
FLOOR = 1e-6
"""In m, rad, m/s and rad/s; float32's spacing is 2.4e-7 between 2 and 4."""
FACTOR = {"mujoco": 1.0, "warp": 10.0, "newton": 10.0, "mjx": 50.0}
"""How many times as large as the control group's the error may be. Engines round at every operation of every
substep, the control group once; measured ratios are 1 to 7. MJX's factor is from before
`physics/_newton_end.py`; with it `go1_velocity` has a ratio of 2."""
_CELLS = (
    "C keeps a contact of every cell of the height field that a geom touches, MuJoCo Warp and MJX the "
    "deepest and few beside it; where no geom touches two cells they agree (tests/envs_gpu/test_rough.py)"
)
DEVIATIONS = {
    **{("go1_velocity_rough", engine): (1e4, _CELLS) for engine in ("warp", "newton", "mjx")},
    ("yam_lift", "mjx"): (
        1e3,
        "MJX keeps those corners of a box in a plane that are within 1 mm of the deepest, C every one; of "
        "160 steps with a cube that was hit, the 8 that are more than 4e-2 rad/s apart are all of that kind",
    ),
}
"""(task, engine) -> the excess that is allowed beyond that rule, and its cause."""
_CONVEX = (
    1e5,
    "contacts of ellipsoids, cylinders and meshes: C and the engines stop their search for the deepest point "
    "at ccd_tolerance, at points that differ (docs/engines.md)",
)
"""For a user's robot, in the states in which geoms meet in such contacts."""
MIN_STATES = 20
"""So many states without such a contact are judged by the rule itself; fewer say too little."""
FLOAT32_EPS = 2.0**-23
NUM_DRAWS = 4
"""Members of the control group; the largest of their errors counts."""

_CPU = torch.device("cpu")


def deviation(name: str, task: Task, engine: str, model: mujoco.MjModel) -> tuple[float, str]:
    """The excess that is allowed for the task `name` on `engine`, and its cause; 1 by the rule itself."""
    if (name, engine) in DEVIATIONS:
        return DEVIATIONS[name, engine]
    if task.takes_model and not _pairs.CONVEX.isdisjoint(_pairs.colliding_types(model)):
        return _CONVEX
    return 1.0, ""


class Errors(NamedTuple):
    """Largest absolute error of each state, `[T * N]`."""

    qpos: Tensor
    """m and rad."""
    qvel: Tensor
    """m/s and rad/s."""


class Drift(NamedTuple):
    """Errors of an engine over one control step, and of the control group over the same step."""

    engine: Errors
    control_group: Errors
    factor: float
    convex: Tensor
    """`[T * N]` bool: C had a contact of `physics/_pairs.CONVEX` in that step."""

    def without_convex(self) -> Drift | None:
        """The states in which no such contact was; None where they are fewer than `MIN_STATES`."""
        rest = ~self.convex
        if rest.sum() < MIN_STATES:
            return None
        ours, theirs = (
            Errors(*(errors[rest] for errors in group)) for group in (self.engine, self.control_group)
        )
        return Drift(ours, theirs, self.factor, self.convex[rest])

    def excess(self) -> float:
        """The largest ratio, over the quantiles, of the error to what is allowed; at most 1 is a pass."""
        return max(ours / allowed for _, _, ours, allowed in self.quantiles())

    def quantiles(self) -> Iterator[tuple[str, float, float, float]]:
        """Quantity, quantile, the engine's error, and the largest error that is allowed."""
        for name in Errors._fields:
            ours, theirs = getattr(self.engine, name), getattr(self.control_group, name)
            for quantile in QUANTILES:
                allowed = FLOOR + self.factor * theirs.quantile(quantile).item()
                yield name, quantile, ours.quantile(quantile).item(), allowed


class Verdict(NamedTuple):
    """What a drift means."""

    status: Literal["ok", "named", "failed"]
    """`named`: beyond the rule, for a cause that is known."""
    detail: str
    """How far, as a multiple of what the rule allows, and the cause; one line."""


def judge(drift: Drift, name: str, task: Task, engine: str, model: mujoco.MjModel) -> Verdict:
    """Whether the drift of the task `name` on `engine` is within the rule, or within a known deviation.

    Contacts of convex geoms excuse only the states in which they are: the others are judged by the rule.
    """
    excess = drift.excess()
    found = f"{excess:.2g} times what rounding accounts for"
    if excess <= 1:
        return Verdict("ok", found)
    allowed, reason = deviation(name, task, engine, model)
    if reason == _CONVEX[1]:
        rest, total = drift.without_convex(), len(drift.convex)
        count = f"{int((~drift.convex).sum())} of {total} states without contacts of convex geoms"
        if rest is None:
            found += f" (too few to judge alone: {count})"
        else:
            found += f" ({rest.excess():.2g} in the {count})"
            allowed = allowed if rest.excess() <= 1 else 0.0
    if excess <= allowed:
        return Verdict("named", f"{found}: {reason}")
    return Verdict("failed", f"{found}; {max(allowed, 1.0):g} times may be")


def one_step_drift(
    task: Task, backend: str, num_worlds: int, num_steps: int, options: PhysicsOptions | None = None
) -> Drift:
    """Measure `backend` on a fresh `task` from `num_steps * num_worlds` states, on the CPU.

    Raises:
        UnsupportedModelError: the backend cannot simulate this task.
    """
    scene = task.scene()
    options = replace(options or PhysicsOptions(), mjcf=scene_text(scene))
    model = scene.compile()
    task.attach(model, _CPU)
    engine = BACKENDS.get(backend)(model, num_worlds, _CPU, options)
    drift = drift_of(engine, task, num_steps)
    engine.close()
    return drift


def drift_of(engine: Physics, task: Task, num_steps: int) -> Drift:
    """Measure an engine that already exists, with the task that was attached to its model.

    The engine's worlds end in another state than they began in.
    """
    # The engines run Newton's method; C's other solvers stop before the solution that it reaches.
    model = with_newton(engine.model)
    options = PhysicsOptions(start_act=engine.options.start_act)
    referee, control = (BACKENDS.get("mujoco")(model, engine.num_worlds, _CPU, options) for _ in range(2))
    *errors, convex = zip(*_errors(task, engine, referee, control, num_steps), strict=True)
    for physics in (referee, control):
        physics.close()
    ours, theirs = (Errors(*map(torch.cat, zip(*column, strict=True))) for column in errors)
    runs_warp = engine.name == "mjx" and engine.options.mjx_impl == "warp"
    factor = FACTOR["warp" if runs_warp else engine.name] * task.rounding_factor
    return Drift(ours, theirs, factor, torch.cat(convex))


def _errors(
    task: Task, engine: Physics, referee: Physics, control: Physics, num_steps: int
) -> Iterator[tuple[Errors, Errors, Tensor]]:
    """Errors of the engine and of the control group, and `Drift.convex`, one control step after the other."""
    meets = _ConvexContacts(referee, task.substeps)
    actions, noise = (torch.Generator().manual_seed(seed) for seed in (1, 2))
    num_worlds = referee.num_worlds
    state = task.initial_state(Episode.first(WorldRandom(0, num_worlds, _CPU)))
    low, high = task.action_low, task.action_high
    for _ in range(num_steps):
        qpos, qvel = (values.float().double() for values in state)
        ctrl = task.control(low + (high - low) * torch.rand(num_worlds, len(low), generator=actions))
        state = _after(referee, qpos, qvel, ctrl, task.substeps)
        ours = _error(_after(engine, qpos, qvel, ctrl, task.substeps), state)
        group = [
            _error(_after(control, _nudged(qpos, noise), _nudged(qvel, noise), ctrl, task.substeps), state)
            for _ in range(NUM_DRAWS)
        ]
        theirs = Errors(*(torch.stack(column).amax(0) for column in zip(*group, strict=True)))
        yield ours, theirs, meets(qpos, qvel, ctrl)


class _ConvexContacts:
    """Finds the states from which a control step of C has a contact of `_pairs.CONVEX`."""

    def __init__(self, referee: Physics, substeps: int) -> None:
        self._model, self._substeps = referee.model, substeps
        self._act = referee.options.start_act
        self._possible = not _pairs.CONVEX.isdisjoint(_pairs.colliding_types(self._model))
        self._data = mujoco.MjData(self._model)

    def __call__(self, qpos: Tensor, qvel: Tensor, ctrl: Tensor) -> Tensor:
        """`[N]` bool, of positions, velocities and controls `[N, ...]`."""
        if not self._possible:
            return torch.zeros(len(qpos), dtype=torch.bool)
        rows = zip(*(values.double().numpy() for values in (qpos, qvel, ctrl)), strict=True)
        return torch.tensor([self._meets(*row) for row in rows])

    def _meets(self, qpos: np.ndarray, qvel: np.ndarray, ctrl: np.ndarray) -> bool:
        model, data = self._model, self._data
        mujoco.mj_resetData(model, data)
        data.qpos[:], data.qvel[:], data.ctrl[:] = qpos, qvel, ctrl
        if self._act:
            data.act[:] = self._act
        for _ in range(self._substeps):
            mujoco.mj_step(model, data)
            pairs = data.contact.geom  # -1 where a flex touches
            types = model.geom_type[pairs[(pairs >= 0).all(1)]]
            if any(frozenset(pair) in _pairs.CONVEX for pair in types.tolist()):
                return True
        return False


def _after(
    physics: Physics, qpos: Tensor, qvel: Tensor, ctrl: Tensor, substeps: int
) -> tuple[Tensor, Tensor]:
    """Positions and velocities one control step after a restart."""
    physics.set_state(torch.ones(physics.num_worlds, dtype=torch.bool), qpos, qvel)
    physics.step(ctrl, substeps)
    return physics.state.qpos.double().clone(), physics.state.qvel.double().clone()


def _error(reached: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> Errors:
    return Errors(*((x - y).abs().amax(-1) for x, y in zip(reached, expected, strict=True)))


def _nudged(values: Tensor, generator: torch.Generator) -> Tensor:
    """`values` with random errors of up to one bit of float32."""
    noise = 2 * torch.rand(values.shape, generator=generator, dtype=torch.float64) - 1
    return values * (1 + FLOAT32_EPS * noise)
