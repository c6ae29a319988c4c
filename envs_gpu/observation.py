"""Observation terms: each part of an observation is declared once, with its function, noise, unit and limits.

A task declares groups of terms in `Task.observation`. What the policy observes, the noise on it and what an
export says about it are all derived from them.

Letters: N worlds, D observation width, J joints.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from envs_gpu.errors import EnvError
from envs_gpu.interface import Term, TermKind
from envs_gpu.mirror import Mirror
from envs_gpu.physics.base import PhysicsState

if TYPE_CHECKING:
    from envs_gpu.tasks.base import Episode

Read: TypeAlias = "Callable[[PhysicsState, Episode], Tensor]"
"""A pure, batched function of the state and the episode; gives `[N, width]`."""
Groups: TypeAlias = "Mapping[str, tuple[ObservationTerm, ...]]"
"""Observation groups: name -> terms, in order."""


@dataclass(frozen=True, eq=False)
class ObservationTerm:
    """One part of an observation.

    Raises:
        EnvError: the fields contradict each other.
    """

    name: str
    width: int
    read: Read
    """What a robot would measure or be sent `[N, width]`, before offset and clip, in any floating dtype or
    bool."""
    unit: str = "1"
    """Of every entry, or of the entries one by one, separated by `, `."""
    kind: TermKind = "sensor"
    """`sensor` is measured, `command` is sent by somebody, `last_action` is remembered by the policy."""
    offset: Tensor | None = None
    """`[width]` float32 on the task's device, subtracted from what is read; None is zero."""
    clip: float = math.inf
    """After that, the value is limited to ± this."""
    low: float | None = None
    high: float | None = None
    """A reading beyond these limits is certainly wrong; None is no limit."""
    noise: float | None = None
    """In the term's unit: a run's observation noise is multiplied with it. None is 1 for a sensor. Commands
    and last actions have no noise."""
    commands: tuple[str, ...] = ()
    """Of a command: the names of its entries, with units, such as `forward_m_s`."""
    mirror: Mirror | None = None
    """`[width]` what it is in the left-right mirror image of the world; None where nobody says it."""
    grid: tuple[int, int] | None = None
    """Rows and columns of a term whose entries are a grid, row by row, such as a height scan: a convolution
    can then read it. None where they are not."""

    def __post_init__(self) -> None:
        if problem := self._problem():
            raise EnvError(f"observation term {self.name!r}: {problem}")

    def _problem(self) -> str:
        """What contradicts itself and how to mend it; empty where nothing does."""
        if self.width < 1:
            return f"its width is {self.width}; give it at least 1"
        if self.grid is not None and math.prod(self.grid) != self.width:
            return f"its grid is {self.grid}, its width {self.width}; make one the product of the other"
        if self.offset is not None and self.offset.shape != (self.width,):
            return f"its offset is {list(self.offset.shape)}; make it [{self.width}], as wide as the term"
        if self.mirror is not None and self.mirror.width != self.width:
            return f"its mirror is {self.mirror.width} wide; make it {self.width} wide, as the term"
        if self.mirror is not None and self.offset is not None:
            image = self.mirror.to(self.offset.device)(self.offset)
            if not torch.allclose(image, self.offset, atol=1e-5):
                return "its offset is not its own mirror image; make it so, or declare no mirror"
        if self.kind != "sensor" and self.noise:
            return f"it is a {self.kind}, but has noise {self.noise:g}; only a sensor has noise"
        num_names = self.width if self.kind == "command" else 0
        if len(self.commands) != num_names:
            return f"it is a {self.kind}, but names {len(self.commands)} commands; name {num_names}"
        return ""

    def value(self, state: PhysicsState, episode: Episode) -> Tensor:
        """What the policy observes of it `[N, width]`: the reading minus the offset, clipped."""
        value = self.read(state, episode)
        if self.offset is not None:
            value = value - self.offset
        return value.clamp(-self.clip, self.clip) if self.clip < math.inf else value

    def described(self) -> Term:
        """What an export says about it; tensors are on the CPU."""
        return Term(
            self.name,
            self.width,
            self.unit,
            self.kind,
            offset=None if self.offset is None else self.offset.cpu(),
            clip=self.clip,
            low=self.low,
            high=self.high,
            noise=self.noise if self.kind == "sensor" else 0.0,
        )


def remembered(name: str) -> Read:
    """Reads `name` `[N, width]` from the task's memory."""
    return lambda _, episode: episode.memory[name]


def last_action_term(width: int, mirror: Mirror | None = None) -> ObservationTerm:
    """The last action, from the task's memory `last_action` `[N, width]`."""
    read = remembered("last_action")
    return ObservationTerm("last_action", width, read, kind="last_action", mirror=mirror)


def joint_position_term(
    read: Read,
    default: Tensor,
    low: Tensor,
    high: Tensor,
    unit: str = "rad",
    noise: float | None = None,
    mirror: Mirror | None = None,
) -> ObservationTerm:
    """Joint positions relative to a default pose.

    A joint yields at its stops, and encoders have errors: readings count as possible up to 1 rad (or m)
    beyond the widest limits.

    Args:
        read: the positions `[N, J]`.
        default: `[J]` the pose.
        low: `[J]` lower limits of the joints.
        high: `[J]` upper limits.
        unit: see `ObservationTerm`.
        noise: see `ObservationTerm`.
        mirror: see `ObservationTerm`.
    """
    return ObservationTerm(
        "joint_position",
        len(default),
        read,
        unit,
        offset=default,
        low=low.min().item() - 1.0,
        high=high.max().item() + 1.0,
        noise=noise,
        mirror=mirror,
    )


def observe(groups: Groups, state: PhysicsState, episode: Episode) -> dict[str, Tensor]:
    """Values of observation groups, name -> `[N, D]`; a term that several groups have is read once."""
    terms = {term.name: term for group in groups.values() for term in group}
    values = {name: term.value(state, episode) for name, term in terms.items()}
    return {name: torch.cat([values[term.name] for term in group], -1) for name, group in groups.items()}


def noise_scale(terms: tuple[ObservationTerm, ...], device: torch.device) -> Tensor:
    """`[D]` float32: what a run's observation noise is multiplied with, for each entry of `terms`."""
    scales = [(1.0 if term.noise is None else term.noise) * (term.kind == "sensor") for term in terms]
    widths = torch.tensor([term.width for term in terms])
    return torch.tensor(scales).repeat_interleave(widths).to(device)


def check_groups(groups: Groups) -> None:
    """Check that every group has terms, and that a name stands for one term.

    Raises:
        EnvError: a group is empty or has two terms of one name, or groups have different terms of one name.
    """
    known: dict[str, ObservationTerm] = {}
    for group, terms in groups.items():
        if not terms:
            raise EnvError(f"observation group {group!r} has no terms; give it one, or remove the group")
        names = [term.name for term in terms]
        if twice := {name for name in names if names.count(name) > 1}:
            raise EnvError(f"observation group {group!r} has two terms {twice.pop()!r}; rename one of them")
        for term in terms:
            if known.setdefault(term.name, term) is not term:
                problem = f"two observation groups have different terms {term.name!r}"
                raise EnvError(f"{problem}; rename one, or put the same term into both")


def check_reads(task: str, groups: Groups, state: PhysicsState, episode: Episode) -> None:
    """Read every term once, and check that its width is the declared one.

    Args:
        task: the task's name, for the error.
        groups: what the task declares.
        state: of any worlds.
        episode: of the same worlds, with the task's memory.

    Raises:
        EnvError: a reading has another shape than `[N, width]`.
    """
    for group, terms in groups.items():
        for term in terms:
            shape, expected = list(term.read(state, episode).shape), [len(state.qpos), term.width]
            if shape != expected:
                problem = f"observation term {term.name!r} ({group}) reads {shape}, but declares {expected}"
                raise EnvError(f"task {task}: {problem}; correct its width or its read")
