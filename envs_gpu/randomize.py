"""Domain randomization: every world has physics, delays and noise of its own, drawn on the device.

Described by `Randomization`; `Randomizer` draws from the worlds' own random streams, so that what a world
gets depends on neither their number, nor its index, nor its neighbours, and writes model fields with
`Physics.randomize`. Several knobs on one field (gains and motor strength, mass and inertia) multiply.

After Peng et al. 2018 ("Sim-to-Real Transfer of Robotic Control with Dynamics Randomization").

Letters: N worlds, n of them, A actions, K the longest delay in control steps, W numbers of a world, T knobs
per interval and pushes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mujoco
import torch
from torch import Tensor

from envs_gpu.compiled import compiled
from envs_gpu.draw import Draw
from envs_gpu.model_knobs import KNOBS, ModelKnobs, element_names, matching
from envs_gpu.physics.base import Physics
from envs_gpu.random import (
    INITIAL_POSITION,
    INITIAL_VELOCITY,
    RANDOMIZATION,
    Draws,
    WorldRandom,
    draws,
)
from envs_gpu.terms.pose import Pose

_FEW = 8
"""Worlds that a compiled redraw takes at a time on a CPU: mostly fewer begin or are due; more take turns."""


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
        knobs = {name: draw for name in KNOBS if (draw := getattr(randomization, name))}
        self.knobs = ModelKnobs(knobs, randomization.model_fields, model, num_worlds, device)
        intervals = [draw.interval_s for draw in knobs.values() if draw.per == "interval"]
        intervals += [randomization.pushes.interval_s] if randomization.pushes else []
        chance = control_dt / torch.tensor(intervals, dtype=torch.float64, device=device)
        self._log_calm = torch.log1p(-chance.clamp(max=1.0))
        """`[T]` logarithm of the chance that a control step brings none."""
        self._wait = torch.zeros(num_worlds, len(intervals), dtype=torch.int64, device=device)
        """`[N, T]` control steps until the next one."""
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

        # None where they are not compiled. As in SimEnv, uncompiled methods of the object are not kept in it.
        self._compiled_draw: Callable[..., tuple[dict[str, Tensor], Tensor]] | None = None
        self._compiled_delay: Callable[[Tensor], Tensor] | None = None

    def compile(self) -> None:
        """From now on draw and delay in compiled pieces."""
        self._compiled_draw, self._compiled_delay = compiled(self._draw_anew), compiled(self._late_action)

    def close(self) -> None:
        """Let go of what was compiled, which refers to this object."""
        self._compiled_draw = self._compiled_delay = None

    def begin(self, mask: Tensor, random: WorldRandom, step: Tensor) -> None:
        """Draw for the worlds where `mask` `[N]` is true, which begin an episode; their clocks say so.

        Args:
            mask: `[N]` bool.
            random: the worlds' numbers.
            step: `[N]` int64 control steps of the running episode.
        """
        self._turn(mask, torch.zeros_like(self._wait, dtype=torch.bool), random, step)

    def after_step(self, done: Tensor, random: WorldRandom, step: Tensor) -> None:
        """`begin` where `done`; elsewhere pushes and turns are a control step nearer, and some are due."""
        self._wait -= 1
        self._turn(done, self._wait <= 0, random, step)

    def start(self, qpos: Tensor, qvel: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """The start `qpos` `[N, nq]`, `qvel` `[N, nv]` with the initial state's noise."""
        if draw := self._settings.initial_position:
            unit = draws.uniform(INITIAL_POSITION, draw.num_lanes(len(self._position)))
            qpos = self._pose.displace(qpos.double(), self._offset(draw, self._position, unit))
        if draw := self._settings.initial_velocity:
            unit = draws.uniform(INITIAL_VELOCITY, draw.num_lanes(len(self._velocity)))
            qvel = qvel + self._offset(draw, self._velocity, unit)
        return qpos, qvel

    def before_step(self, action: Tensor) -> Tensor:
        """The action that reaches the motors now, where `action` `[N, A]` is given."""
        if not self._settings.action_delay:
            return action
        return (self._compiled_delay or self._late_action)(action)

    def state_dict(self) -> dict[str, Tensor]:
        state = {"knobs": self.knobs.numbers, "sent": self._sent, "delay": self._delay, "wait": self._wait}
        return {name: value.clone() for name, value in state.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.knobs.numbers.copy_(state["knobs"])
        self._delay.copy_(state["delay"])
        self._wait.copy_(state["wait"])
        self._sent.copy_(state["sent"])

    def _late_action(self, action: Tensor) -> Tensor:
        self._sent.copy_(torch.cat((self._sent[:, 1:], action[:, None]), 1))  # [N, K + 1, A], newest last
        world = torch.arange(len(action), device=action.device)
        return self._sent[world, self._sent.shape[1] - 1 - self._delay]

    def _turn(self, begins: Tensor, due: Tensor, random: WorldRandom, step: Tensor) -> None:
        """Numbers for worlds that begin `[N]` or for which something is due `[N, T]`, and what follows."""
        parts = self._selections(begins | due.any(-1))
        if not parts:
            return
        draw = self._compiled_draw or self._draw_anew
        drawn = [draw(worlds, begins, due, random.key, random.counter, step) for worlds in parts]
        worlds = _join(parts)
        for name in drawn[0][0]:
            self._physics.randomize(name, _join([fields[name] for fields, _ in drawn]), worlds)
        if self._settings.pushes:
            self._physics.push(worlds, _join([change for _, change in drawn]))

    def _selections(self, concerned: Tensor) -> Sequence[Tensor]:
        """The worlds `[n]` where `concerned` `[N]` is true, some at a time.

        On a GPU all of them: finding out who is concerned would stall the stream.
        """
        if concerned.device.type != "cpu":
            return [torch.arange(len(concerned), device=concerned.device)]
        worlds = concerned.nonzero().squeeze(-1)
        if self._compiled_draw is None or not len(worlds):
            return [worlds] if len(worlds) else []
        # Whole parts, or every size would be compiled; the last world takes its turn again, to the same end.
        missing = -len(worlds) % _FEW
        return torch.cat((worlds, worlds[-1:].expand(missing))).split(_FEW)

    def _draw_anew(
        self, worlds: Tensor, begins: Tensor, due: Tensor, key: Tensor, counter: Tensor, step: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """New numbers for `worlds` `[n]` where due: their fields, and the change `[n, nv]` of velocities.

        The other arguments are of all worlds, as in `_turn`.
        """
        begins, due, push = begins[worlds], due[worlds], self._settings.pushes
        episode, this_step = (draws(key[worlds], counter[worlds], at) for at in (None, step[worlds]))
        lanes = (self.knobs.num_lanes, due.shape[1], 1, push.num_lanes(len(self._pushed)) if push else 0)
        own = Draws(torch.where(begins, episode.block, this_step.block)).uniform(RANDOMIZATION, sum(lanes))
        for_knobs, for_waits, for_delay, for_push = own.split(lanes, -1)
        begins = begins[:, None]
        self.knobs.turn(worlds, for_knobs, begins | self.knobs.timed_columns(due))
        self._wait[worlds] = torch.where(begins | due, self._waits(for_waits), self._wait[worlds])
        if delay := self._settings.action_delay:
            steps = delay.low + (delay.high + 1 - delay.low) * for_delay
            self._delay[worlds] = torch.where(begins, steps.long(), self._delay[worlds, None]).squeeze(-1)
            self._sent[worlds] = self._sent[worlds].masked_fill(begins[..., None], 0.0)
        change = for_push.new_zeros(len(worlds), 0)
        if push:
            change = self._offset(push, self._pushed, for_push).masked_fill(begins | ~due[:, -1:], 0.0)
        return self.knobs.fields(worlds), change

    def _waits(self, unit: Tensor) -> Tensor:
        """Control steps until something comes that each step brings with the same chance (geometric)."""
        return (torch.log1p(-unit) / self._log_calm).floor().long() + 1

    def _offset(self, draw: Draw, dofs: Tensor, unit: Tensor) -> Tensor:
        """Numbers for `dofs` and zero for the others `[n, nv]`, from uniform ones."""
        if draw.shared:
            unit = unit[:, : draw.num_lanes(1)]
        numbers = draw.numbers(unit)
        offset = numbers.new_zeros(len(numbers), self._physics.model.nv)
        offset[:, dofs] = numbers.expand(-1, len(dofs))
        return offset


def _join(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts))


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
