"""Domain randomization: every world has physics, delays and noise of its own, drawn on the device.

Described by `Randomization`; `Randomizer` draws from the worlds' own random streams, so that what a world
gets depends on neither their number, nor its index, nor its neighbours, and writes model fields with
`Physics.randomize`. Several knobs on one field (gains and motor strength, mass and inertia) multiply.

After Peng et al. 2018 ("Sim-to-Real Transfer of Robotic Control with Dynamics Randomization").

Letters: N worlds, A actions, K the longest delay in control steps, W numbers of a world.
"""

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import torch
from torch import Tensor

from envs_gpu import selection
from envs_gpu.draw import Draw
from envs_gpu.model_knobs import KNOBS, ModelKnobs, element_names, matching
from envs_gpu.physics.base import Physics
from envs_gpu.random import Draws
from envs_gpu.terms.pose import Pose

# Draws of an episode or a step that no task uses, which count theirs from zero.
_AT_RESET, _POSITION, _VELOCITY, _AT_INTERVAL = range(0x4001, 0x4005)


@dataclass(frozen=True)
class Delay:
    """Whole control steps between an action and its effect, from `low` to `high`, each as likely."""

    low: int = 0
    high: int = 0


@dataclass(frozen=True)
class Randomization:
    """What differs between worlds; None is off. The experiment file's section of this name says more."""

    friction: Draw | None = None
    mass: Draw | None = None
    inertia: Draw | None = None
    com: Draw | None = None
    gains: Draw | None = None
    damping: Draw | None = None
    armature: Draw | None = None
    gravity: Draw | None = None
    motor_strength: Draw | None = None
    action_delay: Delay | None = None
    observation_noise: Draw | None = None
    pushes: Draw | None = None
    initial_position: Draw | None = None
    initial_velocity: Draw | None = None

    @property
    def model_fields(self) -> tuple[str, ...]:
        """The fields of MuJoCo's model that the knobs reach."""
        reached = (field for name, knob in KNOBS.items() if getattr(self, name) for field in knob.fields)
        return tuple(dict.fromkeys(reached))

    @property
    def is_off(self) -> bool:
        return self == Randomization()


class Randomizer:
    """Draws what `randomization` describes for the worlds of one env, and applies it.

    Args:
        randomization: the knobs.
        physics: the worlds; its `options.per_world` holds `randomization.model_fields`.
        action_dim: A.
        control_dt: seconds of a control step.

    Raises:
        RandomizationError: a pattern matches nothing, or the model cannot have a knob.
    """

    def __init__(
        self, randomization: Randomization, physics: Physics, action_dim: int, control_dt: float
    ) -> None:
        self._settings, self._physics = randomization, physics
        model, num_worlds, device = physics.model, physics.num_worlds, physics.device
        draws = {name: draw for name in KNOBS if (draw := getattr(randomization, name))}
        self.knobs = ModelKnobs(draws, randomization.model_fields, model, num_worlds, device)
        intervals = [draw.interval_s for draw in draws.values() if draw.per == "interval"]
        intervals += [randomization.pushes.interval_s] if randomization.pushes else []
        chance = control_dt / torch.tensor(intervals, dtype=torch.float64, device=device)
        self._log_calm = torch.log1p(-chance.clamp(max=1.0))
        """`[knobs per interval, and pushes]` logarithm of the chance that a control step brings none."""
        self._wait = torch.zeros(num_worlds, len(intervals), dtype=torch.int64, device=device)
        """Control steps until the next one."""
        self._pose = Pose(model, device)
        self._pushed = _pushed_dofs(model, randomization.pushes, device)
        self._position, self._velocity = (
            _matching_dofs(f"initial_state.{what}", draw, model, device)
            for what, draw in (
                ("position", randomization.initial_position),
                ("velocity", randomization.initial_velocity),
            )
        )
        delay = randomization.action_delay
        self._sent = torch.zeros(num_worlds, delay.high + 1 if delay else 1, action_dim, device=device)
        self._delay = torch.zeros(num_worlds, dtype=torch.int64, device=device)

    def restart(self, mask: Tensor, draws: Draws) -> None:
        """Draw anew for the worlds where `mask` `[N]` is true, which begin an episode."""
        worlds = selection.concerned(mask)
        if self._settings.is_off or selection.nobody(worlds):
            return
        lanes = (self.knobs.num_lanes, self._wait.shape[1], 1)
        own = Draws(selection.take(draws.block, worlds)).uniform(_AT_RESET, sum(lanes))
        for_knobs, for_waits, for_delay = own.split(lanes, -1)
        self._turn(worlds, for_knobs)
        selection.write(self._wait, worlds, self._waits(for_waits))
        if delay := self._settings.action_delay:
            steps = delay.low + (delay.high + 1 - delay.low) * for_delay.squeeze(-1)
            selection.write(self._delay, worlds, steps)
            selection.write(self._sent, worlds, torch.zeros_like(selection.take(self._sent, worlds)))

    def start(self, qpos: Tensor, qvel: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """The start `qpos` `[N, nq]`, `qvel` `[N, nv]` with the initial state's noise."""
        if draw := self._settings.initial_position:
            unit = draws.uniform(_POSITION, draw.num_lanes(len(self._position)))
            qpos = self._pose.displace(qpos.double(), self._offset(draw, self._position, unit))
        if draw := self._settings.initial_velocity:
            unit = draws.uniform(_VELOCITY, draw.num_lanes(len(self._velocity)))
            qvel = qvel + self._offset(draw, self._velocity, unit)
        return qpos, qvel

    def before_step(self, action: Tensor, draws: Draws) -> Tensor:
        """Push, turn what is due, and give the action `[N, A]` that reaches the motors now."""
        if self._wait.shape[1]:
            self._disturb(draws)
        if not self._settings.action_delay:
            return action
        self._sent = torch.cat((self._sent[:, 1:], action[:, None]), 1)  # [N, K + 1, A], newest last
        world = torch.arange(len(action), device=action.device)
        return self._sent[world, self._sent.shape[1] - 1 - self._delay]

    def state_dict(self) -> dict[str, Tensor]:
        state = {"knobs": self.knobs.numbers, "sent": self._sent, "delay": self._delay, "wait": self._wait}
        return {name: value.clone() for name, value in state.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.knobs.numbers.copy_(state["knobs"])
        self._delay.copy_(state["delay"])
        self._wait.copy_(state["wait"])
        self._sent = state["sent"].clone()

    def _waits(self, unit: Tensor) -> Tensor:
        """Control steps until something comes that each step brings with the same chance (geometric)."""
        return (torch.log1p(-unit) / self._log_calm).floor().long() + 1

    def _disturb(self, draws: Draws) -> None:
        """What happens in the midst of an episode, at random times."""
        self._wait -= 1
        due = self._wait <= 0  # [N, knobs per interval, and pushes]
        if due.device.type == "cpu" and not due.any():
            return
        worlds, push = selection.concerned(due.any(-1)), self._settings.pushes
        due = selection.take(due, worlds)
        lanes = (self.knobs.num_lanes, due.shape[1], push.num_lanes(len(self._pushed)) if push else 0)
        own = Draws(selection.take(draws.block, worlds)).uniform(_AT_INTERVAL, sum(lanes))
        for_knobs, for_waits, for_push = own.split(lanes, -1)
        wait = torch.where(due, self._waits(for_waits), selection.take(self._wait, worlds))
        selection.write(self._wait, worlds, wait)
        if self.knobs.timed_fields:
            self._turn(worlds, for_knobs, self.knobs.timed_columns(due))
        if push:
            change = self._offset(push, self._pushed, for_push)
            self._physics.push(worlds, torch.where(due[:, -1:], change, 0.0))

    def _turn(self, worlds: Tensor, unit: Tensor, turning: Tensor | None = None) -> None:
        """New numbers for the knobs of some worlds, and what follows from them for the model."""
        if not self.knobs.num_lanes:
            return
        self.knobs.turn(worlds, unit, turning)
        fields = self.knobs.fields(worlds)
        for field in fields if turning is None else self.knobs.timed_fields:
            self._physics.randomize(field, fields[field], worlds)

    def _offset(self, draw: Draw, dofs: Tensor, unit: Tensor) -> Tensor:
        """Numbers for `dofs` and zero for the others `[n, nv]`, from uniform ones."""
        if draw.shared:
            unit = unit[:, : draw.num_lanes(1)]
        numbers = draw.numbers(unit)
        offset = numbers.new_zeros(len(numbers), self._physics.model.nv)
        offset[:, dofs] = numbers.expand(-1, len(dofs))
        return offset


def _matching_dofs(knob: str, draw: Draw | None, model: mujoco.MjModel, device: torch.device) -> Tensor:
    """The dofs of the joints that the pattern matches; none without a draw."""
    joints = matching(knob, draw, "joint", element_names(model, "joint")) if draw else []
    dofs = [dof for dof in range(model.nv) if model.dof_jntid[dof] in joints]
    return torch.tensor(dofs, dtype=torch.int64, device=device)


def _pushed_dofs(model: mujoco.MjModel, draw: Draw | None, device: torch.device) -> Tensor:
    """The dofs of the matching floating bodies, or of all matching joints in a model without any."""
    dofs = _matching_dofs("pushes", draw, model, device)
    types = model.jnt_type[model.dof_jntid[dofs.tolist()]]
    floating = torch.tensor(types == int(mujoco.mjtJoint.mjJNT_FREE), dtype=torch.bool, device=device)
    return dofs[floating] if floating.any() else dofs
