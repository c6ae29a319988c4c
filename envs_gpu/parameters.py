"""Task parameters: reward weights, command ranges and thresholds that may change while worlds run.

A task declares them once, with their defaults. The env holds one number a world for each of them, on the
device, and hands them to the task's functions in the `Episode`, so that compiled code reads them.

Letters: N worlds, P parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from envs_gpu.errors import SettingError
from envs_gpu.registry import nearest

FIELD = "env.task"
"""The section of an experiment file that sets parameters."""


@dataclass(frozen=True)
class Parameter:
    """One number of a task that an experiment, a curriculum or a population may set.

    Raises:
        ValueError: the default is out of range.
    """

    name: str
    """In snake_case, with its unit; a reward term `x` that is weighted by `Task.weigh` has `x_weight`."""
    default: float
    unit: str
    doc: str
    """What it does, in one line."""
    low: float = -math.inf
    high: float = math.inf
    """It must be a finite number between these, both included."""

    def __post_init__(self) -> None:
        if not self.low <= self.default <= self.high:
            raise ValueError(f"{self.name}: its default {self.default} must be {self.range}")

    @property
    def range(self) -> str:
        """What values are allowed, in words."""
        if self.low == -math.inf and self.high == math.inf:
            return "any finite number"
        if self.high == math.inf:
            return f"at least {self.low:g}"
        return f"at most {self.high:g}" if self.low == -math.inf else f"from {self.low:g} to {self.high:g}"


def with_defaults(parameters: Sequence[Parameter], **defaults: float) -> tuple[Parameter, ...]:
    """The same parameters with other defaults, for a task that derives from another one.

    Raises:
        KeyError: a name is not among them.
    """
    if unknown := defaults.keys() - {parameter.name for parameter in parameters}:
        raise KeyError(f"no such parameters: {', '.join(sorted(unknown))}")
    return tuple(replace(known, default=defaults.get(known.name, known.default)) for known in parameters)


class ParameterTable:
    """The values of a task's parameters in every world.

    Args:
        env: the env's name, for errors.
        parameters: what the task declares.
        num_worlds: N.
        dtype: the simulator's, so that `state.qpos * parameters[name]` keeps it.
        device: where the values live.
        values: name -> a number for all worlds, where it is not the default.

    Raises:
        SettingError: as in `write`.
    """

    def __init__(
        self,
        env: str,
        parameters: Sequence[Parameter],
        num_worlds: int,
        dtype: torch.dtype,
        device: torch.device,
        values: Mapping[str, float | Tensor] | None = None,
    ) -> None:
        self._env, self._parameters = env, {parameter.name: parameter for parameter in parameters}
        defaults = torch.tensor([parameter.default for parameter in parameters], dtype=dtype, device=device)
        self.table = defaults[:, None].repeat(1, num_worlds)
        """`[P, N]`, one row a parameter. One tensor, because each input of compiled code costs time. It is
        never replaced, only written to."""
        self.write(None, values or {})

    def rows(self, table: Tensor | None = None) -> dict[str, Tensor]:
        """Name -> `[N]`, views of `table` `[P, N]`; None is the env's own."""
        rows = (self.table if table is None else table).unbind(0)
        return dict(zip(self._parameters, rows, strict=True))

    def write(self, mask: Tensor | None, values: Mapping[str, float | Tensor]) -> None:
        """Set parameters in the worlds where `mask` `[N]` is true, None for all; one host sync a tensor.

        Args:
            mask: bool.
            values: name -> a number, or a tensor `[]` or `[N]`. Nothing is written if one of them is wrong.

        Raises:
            SettingError: an unknown name, no number, a wrong shape, or out of range in a masked world.
            ValueError: `mask` is not `[N]` bool.
        """
        num_worlds = self.table.shape[1]
        if mask is not None and (mask.shape != (num_worlds,) or mask.dtype != torch.bool):
            raise ValueError(f"mask is {list(mask.shape)} {mask.dtype}; it must be [{num_worlds}] torch.bool")
        checked = {name: self._checked(name, value, mask) for name, value in values.items()}
        for name, row in self.rows().items():
            if name in checked:
                new = torch.as_tensor(checked[name]).to(row)
                row.copy_(new if mask is None else torch.where(mask.to(row.device), new, row))

    def state_dict(self) -> dict[str, Tensor]:
        return {name: row.clone() for name, row in self.rows().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, row in self.rows().items():
            row.copy_(state[name])

    def _checked(self, name: str, value: Any, mask: Tensor | None) -> float | Tensor:
        """`value` if the parameter `name` can be set to it.

        Raises:
            SettingError: it cannot.
        """
        field = f"{FIELD}.{name}"
        if name not in self._parameters:
            raise unknown_parameter(self._env, name, value, self._parameters)
        known = self._parameters[name]
        unit = "" if known.unit == "1" else f" {known.unit}"
        fix = f"set it to {known.range}; its default is {known.default:g}{unit}"
        if not isinstance(value, (int, float, Tensor)) or isinstance(value, bool):
            raise SettingError(field, value, "it is not a number", fix)
        if not isinstance(value, Tensor):
            if not (math.isfinite(value) and known.low <= value <= known.high):
                raise SettingError(field, value, "it is out of range", fix)
            return value
        num_worlds = self.table.shape[1]
        if value.shape not in ((), (num_worlds,)):
            shape = f"give one number for all worlds, or a tensor [{num_worlds}] with one for each"
            raise SettingError(field, f"tensor {list(value.shape)}", "its shape is wrong", shape)
        wrong = ~(value.isfinite() & (value >= known.low) & (value <= known.high))
        wrong = wrong if mask is None else wrong & mask.to(wrong.device)
        if wrong.any():
            raise SettingError(field, value.expand_as(wrong)[wrong][0].item(), "it is out of range", fix)
        return value


def unknown_parameter(env: str, name: str, value: object, known: Mapping[str, Parameter]) -> SettingError:
    """The error about a parameter `name` that the env does not have; it names the nearest of the `known`."""
    field = f"{FIELD}.{name}"
    if not known:
        return SettingError(field, value, f"{env} has no task parameters", "remove it")
    guess = nearest(name, known)
    hint = f"did you mean {guess!r}? " if guess else ""
    return SettingError(field, value, f"{env} has no such parameter", f"{hint}known: {', '.join(known)}")
