"""Faults on purpose: the environment variable `PI_FAULT` breaks a command at a named place, for tests.

    PI_FAULT=kill@save:rename            SIGKILL before a checkpoint gets its name
    PI_FAULT=term@update:2               SIGTERM during the second update
    PI_FAULT=nan@grad:5,enospc@save      NaN in the gradients of the fifth step; no space for the first save
    PI_FAULT=kill@update:3/1             SIGKILL of rank 1 during the third update

The form is `ACTION@SITE`, then optionally `:PHASE` (of a save), `:NUMBER` (the how-manieth time the site is
reached in this process, from 1), and `/RANK`. Several are separated by commas. A process that torchrun has
restarted has no faults, so that a test sees how it continues.

Without the variable `PLAN` is None, and a site costs one comparison, outside of the steps of the worlds.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from pi_incubator.errors import UserError

VARIABLE = "PI_FAULT"
PHASES = ("write", "hash", "fsync", "rename", "prune")
"""Of a save. `write` and `hash` are reached once for each file, `fsync` once for each file and folder."""
SITES = {
    "save": "a checkpoint is saved; without a phase: before anything is written",
    "collect": "the worlds begin to be stepped for an iteration",
    "update": "the learning of an iteration begins",
    "compile": "an optimizer step is compiled",
    "grad": "the gradients of an optimizer step (which is then not compiled)",
    "env": "the action of world 0 in a step of the worlds",
    "worlds": "the actions of all worlds in a step of the worlds",
    "reward": "the reward of world 0 in a step of the worlds",
    "reset": "all worlds are reset, or made",
    "evaluation": "an evaluation begins",
    "export": "an export begins",
    "runner": "a step of an exported policy in simulation",
    "tracker": "the tracking store is called",
}
VALUES = {"nan": float("nan"), "inf": float("inf")}
"""What the sites in `TAKES_VALUES` can be given."""
TAKES_VALUES = ("grad", "env", "worlds", "reward")
SLOW_S = 20.0
FORM = re.compile(
    r"(?P<action>\w+)@(?P<site>\w+)(:(?P<phase>[a-z]+))?(:(?P<number>[1-9]\d*))?(/(?P<rank>\d+))?"
)

_T = TypeVar("_T")


def _signal(number: signal.Signals) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def _fail(code: int) -> Callable[[], None]:
    def fail() -> None:
        raise OSError(code, f"{os.strerror(code)} ({VARIABLE})")

    return fail


def _raise() -> None:
    raise RuntimeError(f"{VARIABLE} asked for this error")


def _hang() -> None:
    while True:
        time.sleep(1.0)


ACTIONS: dict[str, Callable[[], None]] = {
    "kill": _signal(signal.SIGKILL),
    "term": _signal(signal.SIGTERM),
    "int": _signal(signal.SIGINT),
    "enospc": _fail(errno.ENOSPC),
    "erofs": _fail(errno.EROFS),
    "eio": _fail(errno.EIO),
    "raise": _raise,
    "hang": _hang,
    "slow": lambda: time.sleep(SLOW_S),
}


@dataclass
class Fault:
    """One entry of `PI_FAULT`."""

    action: str
    site: str
    phase: str
    number: int
    rank: int | None
    """The rank that it is for; None is every rank."""
    reached: int = 0
    """How often its site has been reached."""

    def is_due(self, site: str, phase: str) -> bool:
        """Whether it happens now, where `phase` of `site` is reached once more."""
        if (site, phase) != (self.site, self.phase):
            return False
        self.reached += 1
        return self.reached == self.number


class Plan:
    """The faults of this process.

    Args:
        text: as `PI_FAULT` gives them.
        rank: of this process; faults for other ranks are left out.

    Raises:
        UserError: `text` is not understood.
    """

    def __init__(self, text: str, rank: int = 0) -> None:
        faults = [_parse(entry.strip()) for entry in text.split(",")]
        self._faults = [fault for fault in faults if fault.rank in (None, rank)]

    def names(self, *sites: str) -> bool:
        """Whether there is a fault for one of these sites."""
        return any(fault.site in sites for fault in self._faults)

    def reach(self, site: str, phase: str = "") -> None:
        """Do what is planned for this time at `site`."""
        for fault in self._faults:
            if fault.action in ACTIONS and fault.is_due(site, phase):
                ACTIONS[fault.action]()

    def value(self, site: str) -> float | None:
        """The number that takes the place of what is at `site` this time; None leaves it."""
        for fault in self._faults:
            if fault.action in VALUES and fault.is_due(site, ""):
                return VALUES[fault.action]
        return None


def _parse(entry: str) -> Fault:
    def error(problem: str, fix: str) -> UserError:
        return UserError(f"environment: {VARIABLE} = {entry!r}: {problem}; {fix}")

    found = FORM.fullmatch(entry)
    if not found:
        raise error("is not ACTION@SITE[:PHASE][:NUMBER][/RANK]", "for example kill@save:rename")
    action, site, phase = found["action"], found["site"], found["phase"] or ""
    if site not in SITES:
        raise error(f"there is no site {site!r}", f"the sites are: {', '.join(SITES)}")
    if action not in ACTIONS and action not in VALUES:
        raise error(f"there is no action {action!r}", f"the actions are: {', '.join([*ACTIONS, *VALUES])}")
    if action in VALUES and site not in TAKES_VALUES:
        raise error(f"{site} takes no number", f"those that do are: {', '.join(TAKES_VALUES)}")
    if phase and (site != "save" or phase not in PHASES):
        raise error(f"{site} has no phase {phase!r}", f"the phases are: save:{', save:'.join(PHASES)}")
    rank = None if found["rank"] is None else int(found["rank"])
    return Fault(action, site, phase, int(found["number"] or 1), rank)


PLAN: Plan | None = None
"""What `arm` read; None where there are no faults."""


def arm() -> None:
    """Read `PI_FAULT`, once; commands call it before anything else.

    Raises:
        UserError: its value is not understood.
    """
    global PLAN
    text = os.environ.get(VARIABLE, "")
    if text and PLAN is None and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        PLAN = Plan(text, int(os.environ.get("RANK", "0")))


def reach(site: str, phase: str = "") -> None:
    """Say that the process is at `site` now; does nothing without a plan."""
    if PLAN is not None:
        PLAN.reach(site, phase)


def spoiled_env(env: _T) -> _T:
    """`env`, or the same with faults at `env`, `worlds`, `reward` and `reset`, where there are some."""
    if PLAN is None or not PLAN.names("env", "worlds", "reward", "reset"):
        return env
    PLAN.reach("reset")
    return cast(_T, _SpoiledEnv(env, PLAN))


class _SpoiledEnv:
    """An env (see `envs_gpu.vec_env`) with faults; everything else is that of the env within."""

    def __init__(self, env: Any, plan: Plan) -> None:
        self._env, self._plan = env, plan

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def reset(self, seed: int) -> Any:
        self._plan.reach("reset")
        return self._env.reset(seed)

    def step(self, action: Any) -> Any:
        for site, worlds in (("env", slice(0, 1)), ("worlds", slice(None))):
            self._plan.reach(site)
            if (value := self._plan.value(site)) is not None:
                action = action.clone()
                action[worlds] = value
        result = self._env.step(action)
        self._plan.reach("reward")
        if (value := self._plan.value("reward")) is not None:
            result.reward[0] = value
        return result
