"""From the numbers that a world draws to the fields of its model.

A world's numbers lie in one row, whatever they are for, and two more columns hold 1 and 0. Then every entry
of every field is `nominal * number * number + number` with columns looked up in tables: a handful of
operations for all knobs, fields and worlds, and knobs on the same entry multiply of themselves.

Letters: N worlds, n of them that are looked at, W numbers of a world, E elements (bodies, geoms, joints or
actuators), F entries of all fields.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

import mujoco
import numpy as np
import torch
from torch import Tensor

from envs_gpu.actuators import drives_joint
from envs_gpu.draw import Draw, RandomizationError
from envs_gpu.physics.base import nominal
from envs_gpu.random import standard_normal


class Kind(NamedTuple):
    """What a knob turns."""

    element: str
    """`body`, `geom`, `joint`, `actuator`, or `world` for what a world has one of."""
    fields: tuple[str, ...]
    """The fields of MuJoCo's model that it reaches."""
    neutral: float = 1.0
    """What changes nothing: 1 for a factor, 0 for an offset."""
    width: int = 1
    """Numbers of one element."""


_ACTUATION = ("actuator_gainprm", "actuator_biasprm")
KNOBS = {
    "friction": Kind("geom", ("geom_friction",)),
    "mass": Kind("body", ("body_mass", "body_inertia", "body_subtreemass")),
    "inertia": Kind("body", ("body_inertia",)),
    "com": Kind("body", ("body_ipos",), neutral=0.0, width=3),
    "gains": Kind("actuator", _ACTUATION),
    "damping": Kind("joint", ("dof_damping", *_ACTUATION)),
    "armature": Kind("joint", ("dof_armature",)),
    "gravity": Kind("world", ("opt.gravity",)),
    "motor_strength": Kind("actuator", (*_ACTUATION, "actuator_forcerange")),
}


class ModelKnobs:
    """The knobs that reach the model.

    Args:
        draws: knob -> how its numbers are drawn; those that are off are missing.
        fields: what the knobs reach, in the order in which `fields` gives it.
        model: the nominal one.
        num_worlds: N.
        device: where numbers are drawn.

    Raises:
        RandomizationError: a pattern matches nothing, or the model cannot have a knob.
    """

    def __init__(
        self,
        draws: Mapping[str, Draw],
        fields: Sequence[str],
        model: mujoco.MjModel,
        num_worlds: int,
        device: torch.device,
    ) -> None:
        self._columns: dict[str, np.ndarray] = {}  # knob -> [E, width]
        owners: list[str] = []  # knob of each column
        for name, draw in draws.items():
            self._columns[name] = _columns(name, draw, model, len(owners))
            owners += [name] * (1 + int(self._columns[name].max()) - len(owners))
        self._one, self._zero = len(owners), len(owners) + 1
        for name, columns in self._columns.items():
            columns[columns < 0] = self._zero if KNOBS[name].neutral == 0 else self._one

        start = [KNOBS[name].neutral for name in owners] + [1.0, 0.0]
        row = torch.tensor(start, dtype=torch.float64, device=device)
        self.numbers = row.repeat(num_worlds, 1)
        """`[N, W + 2]`."""
        self._draw_tables([draws[name] for name in owners], device)
        timed = [name for name, draw in draws.items() if draw.per == "interval"]
        self._any_timed = bool(timed)
        clocks = [timed.index(name) if name in timed else -1 for name in owners]
        self._clocks = torch.tensor(clocks, dtype=torch.int64, device=device)
        self._field_tables(fields, model, device)

    def turn(self, worlds: Tensor, unit: Tensor, turning: Tensor) -> None:
        """New numbers for `worlds` `[n]` from uniform ones `[n, num_lanes]`, where `turning` `[n, W]`."""
        width = self._one
        new = self._offset + self._slope * unit[:, :width]
        if self._any_log:
            new = torch.where(self._log, new.exp(), new)
        if len(self._normal):
            pairs = torch.cat((unit[:, self._normal], unit[:, width:]), -1)
            new[:, self._normal] = self._offset[self._normal] + self._slope[self._normal] * standard_normal(
                pairs
            )
        self.numbers[worlds, :width] = torch.where(turning, new, self.numbers[worlds, :width])

    def fields(self, worlds: Tensor) -> dict[str, Tensor]:
        """The model's fields of `worlds`, name -> `[n, ...]`."""
        numbers = self.numbers[worlds]
        entries = self._nominal * numbers[:, self._first] * numbers[:, self._second]
        if "body_ipos" in self._shapes:
            entries = entries + numbers[:, self._added]
        parts = entries.split([shape.numel() for shape in self._shapes.values()], -1)
        fields = {
            name: part.unflatten(-1, shape)
            for (name, shape), part in zip(self._shapes.items(), parts, strict=True)
        }
        if "body_mass" in fields:
            fields["body_subtreemass"] = (self._inside * fields["body_mass"][:, None]).sum(-1)
        return fields

    def timed_columns(self, due: Tensor) -> Tensor:
        """Which columns `[n, W]` turn where knobs per interval are `due` `[n, those knobs or more]`."""
        if not self._any_timed:
            return torch.zeros(len(due), self._one, dtype=torch.bool, device=due.device)
        return due[:, self._clocks] & (self._clocks >= 0)

    def of(self, knob: str) -> Tensor:
        """The knob's numbers `[N, E, width]`, those of elements that it leaves alone included."""
        return self.numbers[:, torch.tensor(self._columns[knob], device=self.numbers.device)]

    def _draw_tables(self, draws: Sequence[Draw], device: torch.device) -> None:
        lines = torch.tensor([draw.line for draw in draws], dtype=torch.float64, device=device).view(-1, 2)
        self._offset, self._slope = lines.unbind(-1)
        kinds = [draw.distribution for draw in draws]
        normal = [column for column, kind in enumerate(kinds) if kind == "normal"]
        self._normal = torch.tensor(normal, dtype=torch.int64, device=device)
        self._any_log = "log_uniform" in kinds
        self._log = torch.tensor([kind == "log_uniform" for kind in kinds], device=device)
        self.num_lanes = len(draws) + len(normal)
        """Uniform numbers that a world's are made of."""

    def _field_tables(self, fields: Sequence[str], model: mujoco.MjModel, device: torch.device) -> None:
        looked_up = [name for name in fields if name != "body_subtreemass"]
        values = {name: nominal(model, name) for name in looked_up}
        self._shapes = {name: torch.Size(value.shape) for name, value in values.items()}
        tables = [self._entries(name, value, model) for name, value in values.items()]

        def flat(arrays: Sequence[np.ndarray], dtype: torch.dtype) -> Tensor:
            rows = [torch.as_tensor(np.array(array), dtype=dtype).flatten() for array in arrays]
            return torch.cat(rows).to(device) if rows else torch.empty(0, dtype=dtype, device=device)

        self._nominal = flat(list(values.values()), torch.float64)  # [F]
        self._first, self._second, self._added = (
            flat([table[i] for table in tables], torch.int64) for i in range(3)
        )
        self._inside = torch.tensor(_subtrees(model), device=device)  # [body, body]

    def _entries(
        self, field: str, value: np.ndarray, model: mujoco.MjModel
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For each entry of `field` the columns of its two factors and of what is added."""
        first, second = np.full(value.shape, self._one), np.full(value.shape, self._one)
        added = np.full(value.shape, self._zero)
        joint_of_actuator = np.where(drives_joint(model), model.actuator_trnid[:, 0], -1)
        match field:
            case "geom_friction":
                first[:, 0] = self._factor("friction", model)
            case "body_mass":
                first[:] = self._factor("mass", model)
            case "body_inertia":
                first[:] = self._factor("mass", model)[:, None]
                second[:] = self._factor("inertia", model)[:, None]
            case "body_ipos":
                added = self._columns["com"]
            case "dof_damping":
                first[:] = self._factor("damping", model)[model.dof_jntid]
            case "dof_armature":
                first[:] = self._factor("armature", model)[model.dof_jntid]
            case "opt.gravity":
                first[:] = self._factor("gravity", model)
            case "actuator_forcerange":
                first[:] = self._factor("motor_strength", model)[:, None]
            case "actuator_gainprm" | "actuator_biasprm":
                of_joints = np.append(self._factor("damping", model), self._one)
                gains, damping = self._factor("gains", model), of_joints[joint_of_actuator]
                if field == "actuator_gainprm":
                    first[:, 0] = np.where(_holds_velocity(model), damping, gains)
                else:
                    first[:, 1], first[:, 2] = gains, damping
                second[:, :3] = self._factor("motor_strength", model)[:, None]
        return first, second, added

    def _factor(self, knob: str, model: mujoco.MjModel) -> np.ndarray:
        """The column `[E]` of each element's factor; that of 1 where the knob is off."""
        if knob in self._columns:
            return self._columns[knob][:, 0]
        return np.full(len(element_names(model, KNOBS[knob].element)), self._one)


def element_names(model: mujoco.MjModel, element: str) -> list[str]:
    """The names of a kind of elements, in the model's order."""
    if element == "world":
        return [""]
    number = {"body": model.nbody, "geom": model.ngeom, "joint": model.njnt, "actuator": model.nactuator}[
        element
    ]
    return [getattr(model, element)(index).name for index in range(number)]


def matching(knob: str, draw: Draw, element: str, names: Sequence[str]) -> list[int]:
    """Indices of the names that the knob's pattern matches.

    Raises:
        RandomizationError: there are none.
    """
    first = 1 if element == "body" else 0  # nothing turns the world
    found = [index for index in range(first, len(names)) if fnmatchcase(names[index], draw.names)]
    if not found:
        known = ", ".join(name for name in names if name) or "empty"
        problem = f"matches no {element} of the model"
        raise RandomizationError(f"{knob}.names", draw.names, problem, f"its {element} names are: {known}")
    return found


def _columns(name: str, draw: Draw, model: mujoco.MjModel, first: int) -> np.ndarray:
    """The columns `[E, width]` of a knob's numbers, from `first` on; -1 where the pattern does not match.

    Raises:
        RandomizationError: it matches nothing, or something that cannot be turned.
    """
    names, width = element_names(model, KNOBS[name].element), KNOBS[name].width
    chosen = matching(name, draw, KNOBS[name].element, names)
    _check_fits(name, draw, model, chosen)
    columns = np.full((len(names), width), -1)
    number = width * (1 if draw.shared else len(chosen))
    columns[chosen] = np.arange(first, first + number).reshape(-1, width)
    return columns


def _check_fits(name: str, draw: Draw, model: mujoco.MjModel, chosen: Sequence[int]) -> None:
    """Check that the elements have what the knob turns.

    Raises:
        RandomizationError: one of them has not.
    """
    odd: list[str] = []
    if name == "com":
        odd = [model.body(body).name for body in chosen if model.body_simple[body]]
        problem = "whose mass matrix MuJoCo keeps diagonal: its center of mass cannot move"
    elif name in ("gains", "motor_strength"):
        plain = (int(mujoco.mjtGain.mjGAIN_FIXED), int(mujoco.mjtGain.mjGAIN_AFFINE))
        odd = [model.actuator(index).name for index in chosen if model.actuator_gaintype[index] not in plain]
        problem = "which is no motor or servo"
    if odd:
        fix = "set it to a pattern without that"
        raise RandomizationError(f"{name}.names", draw.names, f"matches {odd[0]!r}, {problem}", fix)


def _holds_velocity(model: mujoco.MjModel) -> np.ndarray:
    """`[actuator]` bool: a servo of velocity, whose gain is damping where that of others is stiffness."""
    bias = model.actuator_biasprm
    return (bias[:, 1] == 0) & (bias[:, 2] != 0)


def _subtrees(model: mujoco.MjModel) -> np.ndarray:
    """`[body, body]`: 1 where the second is the first or hangs from it."""
    inside = np.eye(model.nbody)
    for body in range(model.nbody - 1, 0, -1):
        inside[model.body_parentid[body]] += inside[body]
    return inside
