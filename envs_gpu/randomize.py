"""Domain randomization: every world has physics, delays and noise of its own, drawn on the device.

Described by `Randomization`; `Randomizer` draws from the worlds' own random streams, so that what a world
gets depends on neither their number, nor its index, nor its neighbours, and writes model fields with
`Physics.randomize`. Several knobs on one field (gains and motor strength, mass and inertia) multiply.

After Peng et al. 2018 ("Sim-to-Real Transfer of Robotic Control with Dynamics Randomization").

Letters: N worlds, n of them that draw, E elements (bodies, geoms, joints or actuators), A actions, D
observation width, K the longest delay in control steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import mujoco
import torch
from torch import Tensor

from envs_gpu.errors import EnvError
from envs_gpu.physics.base import Physics, nominal
from envs_gpu.random import Draws, WorldRandom
from envs_gpu.terms.tangent import Tangent

# Draws of an episode or a step that no task uses, which count theirs from zero.
NOISE, _AT_RESET, _DELAY, _POSITION, _VELOCITY, _PUSH, _WHEN, _AT_INTERVAL = range(0x4000, 0x4008)


class RandomizationError(EnvError):
    """A knob that this model cannot have: `field = value: problem; fix`."""

    def __init__(self, field: str, value: object, problem: str, fix: str) -> None:
        self.field, self.value, self.problem, self.fix = f"randomization.{field}", value, problem, fix
        super().__init__(f"{self.field} = {value!r}: {problem}; {fix}")


@dataclass(frozen=True)
class Draw:
    """How a number is drawn, when, and for which elements."""

    distribution: str = "uniform"
    """`uniform` or `log_uniform` from `low` to `high`, or `normal` with `mean` and `std`."""
    low: float = 0.0
    high: float = 0.0
    mean: float = 0.0
    std: float = 0.0
    per: str = "reset"
    """`reset`, or `interval`: also in the midst of an episode, on average every `interval_s`."""
    interval_s: float = 10.0
    names: str = "*"
    """Shell pattern of the elements' names; the others stay as the model has them."""
    shared: bool = False
    """One number for all elements of a world, or one for each."""

    def num_lanes(self, width: int) -> int:
        """How many uniform numbers `width` numbers are made of."""
        return 2 * width if self.distribution == "normal" else width

    def numbers(self, unit: Tensor) -> Tensor:
        """Uniform numbers in [0, 1) `[n, lanes]` -> numbers of this distribution `[n, width]`."""
        if self.distribution == "uniform":
            return self.low + (self.high - self.low) * unit
        if self.distribution == "log_uniform":
            low, high = torch.tensor((self.low, self.high), dtype=torch.float64).log().tolist()
            return (low + (high - low) * unit).exp()
        return self.mean + self.std * standard_normal(unit)


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
        reached = (field for name, knob in _KNOBS.items() if getattr(self, name) for field in knob.fields)
        return tuple(dict.fromkeys(reached))

    @property
    def is_off(self) -> bool:
        return self == Randomization()


class _Kind(NamedTuple):
    """What a knob turns."""

    element: str
    """`body`, `geom`, `joint`, `actuator`, or `world` for what a world has one of."""
    fields: tuple[str, ...]
    neutral: float = 1.0
    """What changes nothing: 1 for a factor, 0 for an offset."""
    width: int = 1
    """Numbers of one element."""


_KNOBS = {
    "friction": _Kind("geom", ("geom_friction",)),
    "mass": _Kind("body", ("body_mass", "body_inertia", "body_subtreemass")),
    "inertia": _Kind("body", ("body_inertia",)),
    "com": _Kind("body", ("body_ipos",), neutral=0.0, width=3),
    "gains": _Kind("actuator", ("actuator_gainprm", "actuator_biasprm")),
    "damping": _Kind("joint", ("dof_damping", "actuator_gainprm", "actuator_biasprm")),
    "armature": _Kind("joint", ("dof_armature",)),
    "gravity": _Kind("world", ("opt.gravity",)),
    "motor_strength": _Kind("actuator", ("actuator_gainprm", "actuator_biasprm", "actuator_forcerange")),
}


class _Knob:
    """One knob's numbers, of every world and element."""

    def __init__(
        self, name: str, draw: Draw, model: mujoco.MjModel, num_worlds: int, device: torch.device
    ) -> None:
        self.draw, self.kind = draw, _KNOBS[name]
        names = _element_names(model, self.kind.element)
        self.chosen = torch.tensor(_matching(name, draw, self.kind.element, names), device=device)
        _check_fits(name, draw, model, self.chosen.tolist())
        shape = (num_worlds, len(names), self.kind.width)
        self.values = torch.full(
            shape, self.kind.neutral, dtype=torch.float64, device=device
        )  # [N, E, width]
        self.num_lanes = draw.num_lanes(self.kind.width * (1 if draw.shared else len(self.chosen)))

    def turn(self, unit: Tensor, where: _Where) -> None:
        """New numbers from `unit` `[n, lanes]` for the worlds that draw."""
        numbers = self.draw.numbers(unit).unflatten(-1, (-1, self.kind.width))  # [n, 1 or chosen, width]
        new = self.values[where.rows].clone()
        new[:, self.chosen] = numbers.expand(-1, len(self.chosen), -1)
        where.write(self.values, new)


class _Where:
    """The worlds that are concerned: their indices on the CPU, on a GPU all of them and a mask.

    Only there is finding out cheaper than doing the work for all.
    """

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask
        self.rows: Any = mask.nonzero().squeeze(-1) if mask.device.type == "cpu" else slice(None)
        self.nobody = isinstance(self.rows, Tensor) and not len(self.rows)

    def write(self, target: Tensor, rows: Tensor) -> None:
        """Write `rows` `[n, ...]` of the concerned worlds into `target` `[N, ...]`."""
        if isinstance(self.rows, Tensor):
            target[self.rows] = rows.to(target.dtype)
        else:
            target.copy_(torch.where(self.mask.view(-1, *[1] * (target.dim() - 1)), rows, target))


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
        draws = {name: getattr(randomization, name) for name in _KNOBS}
        self._knobs = {
            name: _Knob(name, draw, model, num_worlds, device) for name, draw in draws.items() if draw
        }
        self._from_knobs = _FieldsFromKnobs(model, randomization.model_fields, device)
        self._fields = {
            name: torch.tensor(nominal(model, name), device=device).repeat(
                num_worlds, *[1] * nominal(model, name).ndim
            )
            for name in randomization.model_fields
        }
        self._timed = [name for name, knob in self._knobs.items() if knob.draw.per == "interval"]
        intervals = [self._knobs[name].draw.interval_s for name in self._timed]
        intervals += [randomization.pushes.interval_s] if randomization.pushes else []
        self._chance = control_dt / torch.tensor(intervals, dtype=torch.float64, device=device)
        self._tangent = Tangent(model, device)
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
        where = _Where(mask)
        if where.nobody:
            return
        self._turn(list(self._knobs), where, draws, _AT_RESET)
        if delay := self._settings.action_delay:
            unit = Draws(draws.block[where.rows]).uniform(_DELAY, 1, delay.low, delay.high + 1)
            where.write(self._delay, unit.squeeze(-1).long())
            where.write(self._sent, torch.zeros_like(self._sent[where.rows]))

    def start(self, qpos: Tensor, qvel: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """The start `qpos` `[N, nq]`, `qvel` `[N, nv]` with the initial state's noise."""
        if draw := self._settings.initial_position:
            qpos = self._tangent.move(qpos.double(), self._offset(draw, self._position, draws, _POSITION))
        if draw := self._settings.initial_velocity:
            qvel = qvel + self._offset(draw, self._velocity, draws, _VELOCITY)
        return qpos, qvel

    def before_step(self, action: Tensor, random: WorldRandom, step: Tensor) -> Tensor:
        """Push, turn what is due, and give the action `[N, A]` that reaches the motors now.

        Args:
            action: what was decided `[N, A]`.
            random: the worlds' random streams.
            step: `[N]` control steps since the reset.
        """
        if len(self._chance):
            self._disturb(random.draws(step))
        if not self._settings.action_delay:
            return action
        self._sent = torch.cat((self._sent[:, 1:], action[:, None]), 1)  # [N, K + 1, A], newest last
        world = torch.arange(len(action), device=action.device)
        return self._sent[world, self._sent.shape[1] - 1 - self._delay]

    def state_dict(self) -> dict[str, Tensor]:
        state = {name: knob.values.clone() for name, knob in self._knobs.items()}
        return state | {"sent": self._sent.clone(), "delay": self._delay.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, knob in self._knobs.items():
            knob.values.copy_(state[name])
        self._sent, self._delay = state["sent"].clone(), state["delay"].clone()

    def _disturb(self, draws: Draws) -> None:
        """What happens in the midst of an episode, at random times."""
        due = draws.uniform(_WHEN, len(self._chance)) < self._chance  # [N, knobs]
        if due.device.type == "cpu" and not due.any():
            return
        for number, name in enumerate(self._timed):
            where = _Where(due[:, number])
            if not where.nobody:
                self._turn([name], where, draws, _AT_INTERVAL + number)
        if draw := self._settings.pushes:
            self._physics.push(due[:, -1], self._offset(draw, self._pushed, draws, _PUSH))

    def _turn(self, names: Sequence[str], where: _Where, draws: Draws, stream: int) -> None:
        """New numbers for some knobs, and from all knobs the fields of the model that those reach."""
        if not names:
            return
        lanes = [self._knobs[name].num_lanes for name in names]
        units = Draws(draws.block[where.rows]).uniform(stream, sum(lanes)).split(lanes, -1)
        for name, unit in zip(names, units, strict=True):
            self._knobs[name].turn(unit, where)
        values = {name: knob.values[where.rows] for name, knob in self._knobs.items()}
        for field in dict.fromkeys(field for name in names for field in _KNOBS[name].fields):
            where.write(self._fields[field], self._from_knobs(field, values))
            self._physics.randomize(field, self._fields[field], where.mask)

    def _offset(self, draw: Draw, dofs: Tensor, draws: Draws, stream: int) -> Tensor:
        """Numbers for `dofs` and zero for the others `[N, nv]`."""
        width = 1 if draw.shared else len(dofs)
        numbers = draw.numbers(draws.uniform(stream, draw.num_lanes(width)))
        offset = numbers.new_zeros(len(numbers), self._physics.model.nv)
        offset[:, dofs] = numbers.expand(-1, len(dofs))
        return offset


class _FieldsFromKnobs:
    """The model's fields, worked out from the nominal ones and all knobs."""

    def __init__(self, model: mujoco.MjModel, fields: Sequence[str], device: torch.device) -> None:
        self._nominal = {name: torch.tensor(nominal(model, name), device=device) for name in fields}
        self._mass = torch.tensor(model.body_mass, device=device)
        self._inside = torch.tensor(_subtrees(model), device=device)  # [body, body]
        self._joint_of_dof = torch.tensor(model.dof_jntid, dtype=torch.int64, device=device)
        on_joint = model.actuator_trntype <= int(mujoco.mjtTrn.mjTRN_JOINTINPARENT)
        self._on_joint = torch.tensor(on_joint, device=device)
        joint = torch.tensor(model.actuator_trnid[:, 0], dtype=torch.int64, device=device)
        self._joint_of_actuator = torch.where(self._on_joint, joint, 0)
        bias = torch.tensor(model.actuator_biasprm, device=device)
        # A servo of velocity: its gain is damping, where that of a servo of position is stiffness.
        self._holds_velocity = (bias[:, 1] == 0) & (bias[:, 2] != 0)

    def __call__(self, field: str, knobs: dict[str, Tensor]) -> Tensor:
        """`field` `[n, ...]` under the knobs' numbers, name -> `[n, E, width]`."""
        value = self._nominal[field]
        num_rows = len(next(iter(knobs.values())))
        one = value.new_ones(num_rows, 1)
        factor = {name: knobs[name][..., 0] if name in knobs else one for name in _KNOBS if name != "com"}
        match field:
            case "geom_friction":
                return _scale_columns(value, {0: factor["friction"]})
            case "body_mass":
                return value * factor["mass"]
            case "body_subtreemass":
                return (self._inside * (self._mass * factor["mass"])[:, None]).sum(-1)
            case "body_inertia":
                return value * (factor["mass"] * factor["inertia"])[..., None]
            case "body_ipos":
                return value + knobs["com"]
            case "dof_damping":
                return value * factor["damping"][:, self._joint_of_dof]
            case "dof_armature":
                return value * factor["armature"][:, self._joint_of_dof]
            case "opt.gravity":
                return value * factor["gravity"]
            case "actuator_forcerange":
                return value * factor["motor_strength"][..., None]
        strength, gains, damping = factor["motor_strength"], factor["gains"], one
        if "damping" in knobs:
            damping = torch.where(self._on_joint, factor["damping"][:, self._joint_of_actuator], 1.0)
        if field == "actuator_gainprm":
            proportional = torch.where(self._holds_velocity, damping, gains) * strength
            return _scale_columns(value, {0: proportional, 1: strength, 2: strength})
        return _scale_columns(value, {0: strength, 1: gains * strength, 2: damping * strength})


def standard_normal(unit: Tensor) -> Tensor:
    """Uniform numbers `[..., 2 width]` -> standard normal ones `[..., width]` (Box and Muller 1958)."""
    first, second = unit.chunk(2, -1)
    return (-2.0 * torch.log1p(-first)).sqrt() * torch.cos(2.0 * torch.pi * second)


def _scale_columns(value: Tensor, factors: dict[int, Tensor]) -> Tensor:
    """`value` `[E, C]` -> `[n, E, C]`, some columns times factors `[n, E or 1]`."""
    num_rows = len(next(iter(factors.values())))
    scaled = value.repeat(num_rows, 1, 1)
    for column, factor in factors.items():
        scaled[..., column] *= factor
    return scaled


def _subtrees(model: mujoco.MjModel) -> list[list[float]]:
    """1 where the second body is the first or hangs from it."""
    inside = [[0.0] * model.nbody for _ in range(model.nbody)]
    for body in range(model.nbody):
        above = body
        inside[above][body] = 1.0
        while above:
            above = model.body_parentid[above]
            inside[above][body] = 1.0
    return inside


def _element_names(model: mujoco.MjModel, element: str) -> list[str]:
    if element == "world":
        return [""]
    number = {"body": model.nbody, "geom": model.ngeom, "joint": model.njnt, "actuator": model.nu}[element]
    return [getattr(model, element)(index).name for index in range(number)]


def _matching(knob: str, draw: Draw, element: str, names: Sequence[str]) -> list[int]:
    """Indices of the names that the knob's pattern matches.

    Raises:
        RandomizationError: there are none.
    """
    matching = [index for index, name in enumerate(names) if fnmatchcase(name, draw.names)]
    if not matching:
        known = ", ".join(name for name in names if name) or "nameless"
        problem = f"matches no {element} of the model"
        raise RandomizationError(f"{knob}.names", draw.names, problem, f"its {element} names are: {known}")
    return matching


def _check_fits(name: str, draw: Draw, model: mujoco.MjModel, chosen: Sequence[int]) -> None:
    """Check that the elements have what the knob turns."""
    if name == "com":
        simple = [model.body(body).name for body in chosen if model.body_simple[body]]
        if simple:
            problem = (
                f"matches {simple[0]!r}, whose mass matrix MuJoCo keeps diagonal: its center cannot move"
            )
            raise RandomizationError(
                "com.names", draw.names, problem, "set it to a pattern without that body"
            )
    if name in ("gains", "motor_strength"):
        plain = (int(mujoco.mjtGain.mjGAIN_FIXED), int(mujoco.mjtGain.mjGAIN_AFFINE))
        other = [model.actuator(a).name for a in chosen if model.actuator_gaintype[a] not in plain]
        if other:
            problem = f"matches {other[0]!r}, which is no motor or servo"
            raise RandomizationError(f"{name}.names", draw.names, problem, "set it to a pattern without that")


def _matching_dofs(knob: str, draw: Draw | None, model: mujoco.MjModel, device: torch.device) -> Tensor:
    """The dofs of the joints that the pattern matches; none without a draw."""
    joints = _matching(knob, draw, "joint", _element_names(model, "joint")) if draw else []
    dofs = [dof for dof in range(model.nv) if model.dof_jntid[dof] in joints]
    return torch.tensor(dofs, dtype=torch.int64, device=device)


def _pushed_dofs(model: mujoco.MjModel, draw: Draw | None, device: torch.device) -> Tensor:
    """The dofs of the matching floating bodies, or of all matching joints in a model without any."""
    dofs = _matching_dofs("pushes", draw, model, device)
    types = model.jnt_type[model.dof_jntid[dofs.tolist()]]
    floating = torch.tensor(types == int(mujoco.mjtJoint.mjJNT_FREE), dtype=torch.bool, device=device)
    return dofs[floating] if floating.any() else dofs
