"""Goals of a task, for hindsight experience replay: where they are observed, and what they are worth.

Letters: B steps, G numbers of a goal, D observation width.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from envs_gpu.errors import EnvError
from envs_gpu.observation import Groups, ObservationTerm

Rewards = Callable[[Tensor, Tensor, Mapping[str, Tensor]], dict[str, Tensor]]
"""What was achieved `[B, G]`, the goal `[B, G]`, task parameters name -> `[B]`; gives name -> `[B]`."""
Dependent = Callable[[Tensor, Tensor], Tensor]
"""What is achieved `[B, G]`, the goal `[B, G]`; gives `[B, width]`."""


@dataclass(frozen=True, eq=False)
class Goals:
    """What of a task depends on its goal, declared by `Task.goals` in names of observation terms.

    A step is rewarded for the goal that was observed before it. No end of an episode may depend on the goal.
    The functions are torch, pure and batched.
    """

    goal: str
    """The term that is the goal."""
    achieved: str
    """The term that says where in the space of goals the world is, in the goal's unit and frame."""
    rewards: Rewards
    """The weighted terms of a step's reward that depend on the goal, from what is achieved after the step."""
    parameters: tuple[str, ...] = ()
    """Task parameters that `rewards` reads."""
    dependent: Mapping[str, Dependent] = field(default_factory=dict)
    """The other terms that depend on the goal: name -> what they observe."""


class _Columns(NamedTuple):
    """Where the goal, what is achieved and what depends on the goal are in an observation group."""

    goal: slice | None
    achieved: slice | None
    dependent: list[tuple[slice, Dependent]]


class ObservedGoals:
    """Goals in some observation groups of an env, whose rows are single observations without a history.

    Args:
        goals: what the task declares.
        terms: the observation groups.

    Raises:
        EnvError: no group has a term that `goals` names, or such a term cannot be what it is named for.
    """

    def __init__(self, goals: Goals, terms: Groups) -> None:
        self._goals, self.parameters = goals, goals.parameters
        _check(goals, {term.name: term for group in terms.values() for term in group})
        self._columns = {name: _columns_of(goals, group) for name, group in terms.items()}
        self._goal_group = next(name for name, columns in self._columns.items() if columns.goal)
        # Noise is on the group `policy` alone: what is achieved is read from another one where there is one.
        quiet_first = sorted(self._columns, key=lambda name: name == "policy")
        self._achieved_group = next(name for name in quiet_first if self._columns[name].achieved)

    def goal(self, observation: Mapping[str, Tensor]) -> Tensor:
        """The goal `[B, G]` in observation groups `[B, D]`."""
        return observation[self._goal_group][:, self._columns[self._goal_group].goal]

    def achieved(self, observation: Mapping[str, Tensor]) -> Tensor:
        """What is achieved `[B, G]` in observation groups `[B, D]`."""
        return observation[self._achieved_group][:, self._columns[self._achieved_group].achieved]

    def reward(self, achieved: Tensor, goal: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """The part of a step's reward that depends on the goal `[B]`; arguments as of `Rewards`."""
        return functools.reduce(torch.add, self._goals.rewards(achieved, goal, parameters).values())

    def replace(self, observation: Mapping[str, Tensor], old: Tensor, new: Tensor) -> dict[str, Tensor]:
        """The observation with the goal `new` in rows where the goal is `old`, both `[B, G]`.

        What depends on the goal changes by the difference between what it observes for both. So noise on it
        stays, and where both goals are the same, no bit changes.
        """
        before, achieved = self.goal(observation), self.achieved(observation)
        after = torch.where((before == old).all(-1, keepdim=True), new, before)
        replaced = {}
        for name, columns in self._columns.items():
            value = replaced[name] = observation[name].clone()
            if columns.goal:
                value[:, columns.goal] = after
            for where, observe in columns.dependent:
                value[:, where] += observe(achieved, after) - observe(achieved, before)
        return replaced


def _columns_of(goals: Goals, group: tuple[ObservationTerm, ...]) -> _Columns:
    """Where the terms that `goals` names are in a group."""
    where, start = {}, 0
    for term in group:
        where[term.name] = slice(start, start + term.width)
        start += term.width
    dependent = [(where[name], observe) for name, observe in goals.dependent.items() if name in where]
    return _Columns(where.get(goals.goal), where.get(goals.achieved), dependent)


def _check(goals: Goals, terms: Mapping[str, ObservationTerm]) -> None:
    """Check the terms that `goals` names.

    Raises:
        EnvError: one of them is missing, or cannot be what it is named for.
    """
    for name in (goals.goal, goals.achieved):
        if name not in terms:
            raise EnvError(f"goals name the observation term {name!r}, which no group has; add it to one")
    goal, achieved = terms[goals.goal], terms[goals.achieved]
    if goal.offset is not None or achieved.offset is not None or goal.width != achieved.width:
        problem = f"observation terms {goal.name!r} and {achieved.name!r} cannot be compared"
        raise EnvError(f"{problem}; give them one width and no offset")
    for name in (goals.goal, goals.achieved, *goals.dependent):
        if name in terms and terms[name].clip < math.inf:
            raise EnvError(f"observation term {name!r} belongs to goals and is clipped; remove its clip")
