"""The loop that runs a policy against a robot or a simulator, and stops it safely when time is missed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from ._network import Array
from ._pace import Pace, real_time
from .flags import Flags
from .log import NullLog
from .policy import Policy

MAX_MISSES = 3
EPISODE_WAIT_S = 0.1  # how often a loop without a robot looks whether it shall end
END_LIMIT_S = 5.0  # how long an end may take until the safe target is reached


class Link(Protocol):
    """Where observations come from and targets go to; `PolicyLink` is one."""

    began_episode: bool
    """Whether an observation since the last `receive` began an episode."""

    def receive(self, timeout_s: float) -> Array | None:
        """The newest observation `[D]` since the last call, or None after `timeout_s`."""

    def send(self, target: Array, flags: int) -> None:
        """Send targets `[U]`."""


class Log(Protocol):
    """Where steps are kept; `log.StepLog` is one."""

    def add(self, observation: Array, target: Array, flags: int) -> None:
        """Keep a step."""


@dataclass
class Report:
    """What a loop saw.

    `late` counts deadlines that were missed, `missing` periods without a new observation, `stopped` steps in
    which the watchdog sent the safe target, `flagged` steps by the name of each flag.
    """

    steps: int = 0
    late: int = 0
    missing: int = 0
    stopped: int = 0
    flagged: dict[str, int] = field(default_factory=dict)


class Loop:
    """Steps a policy at its control rate.

    The watchdog: after `max_misses` periods in a row that were late or without a new observation the robot
    gets the safe target, until a period is good again. Before that it keeps its last target.

    Args:
        policy: to run.
        link: to the robot.
        log: of every step.
        max_misses: as above.
    """

    def __init__(
        self, policy: Policy, link: Link, log: Log | None = None, *, max_misses: int = MAX_MISSES
    ) -> None:
        self.report = Report()
        self._policy = policy
        self._link = link
        self._log = NullLog() if log is None else log
        self._max_misses = max_misses
        self._misses = 0
        self._overran = False
        self._period_s = 1.0 / policy.contract.control_hz

    def run(
        self,
        *,
        follow_link: bool = False,
        realtime_priority: int | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        max_steps: int | None = None,
    ) -> Report:
        """Run until `should_stop` or for `max_steps`, and end on the safe target, as fast as rates permit.

        Args:
            follow_link: answer each observation when it comes, at the robot's or simulator's rate, instead of
                at the control rate with the newest one.
            realtime_priority: of SCHED_FIFO, 1 to 99.
            should_stop: is asked once a period.
            max_steps: of the policy; None for no limit.

        Raises:
            ScheduleError: the system does not permit the priority.
        """
        tick = self._follow if follow_link else self._keep_pace
        with real_time(realtime_priority):
            self._wait_for_robot(should_stop)
            pace = Pace(self._period_s)
            try:
                while not should_stop() and (max_steps is None or self.report.steps < max_steps):
                    tick(pace)
            finally:
                self._end(pace)
        return self.report

    def _wait_for_robot(self, should_stop: Callable[[], bool]) -> None:
        """Nothing is late before the first observation; it is answered as the first step."""
        while not should_stop():
            observation = self._receive(EPISODE_WAIT_S)
            if observation is not None:
                self._step(observation)
                return

    def _keep_pace(self, pace: Pace) -> None:
        """One period: sleep to its tick, take the newest observation, answer it before the period ends."""
        num_missed = pace.wait()
        observation = self._receive(0.0)
        self.report.late += num_missed
        if observation is None:
            self.report.missing += 1
        if num_missed or observation is None:
            self._misses += max(num_missed, 1)
            self._miss(observation)
            return
        self._misses = 0
        self._step(observation)

    def _follow(self, pace: Pace) -> None:
        """Wait up to a period for an observation, and answer it at once."""
        observation = self._receive(self._period_s)
        if observation is None:
            self.report.missing += 1
            self._misses += 1
            self._miss(None)
            return
        start_ns = time.monotonic_ns()
        if self._overran:
            self._misses += 1
            self._miss(observation)
        else:
            self._misses = 0
            self._step(observation)
        self._overran = time.monotonic_ns() - start_ns > self._period_s * 1e9
        self.report.late += self._overran

    def _receive(self, timeout_s: float) -> Array | None:
        observation = self._link.receive(timeout_s)
        if self._link.began_episode:
            # The motors hold what was sent last, and a rate limit counts from there.
            self._policy.reset(self._policy.target.copy())
        return observation

    def _step(self, observation: Array) -> None:
        self._send(self._policy.step(observation))

    def _miss(self, observation: Array | None) -> None:
        """A period that was late or without an observation."""
        policy = self._policy
        if self._misses >= self._max_misses:
            self.report.stopped += 1
            self._send(policy.step_to_safe(Flags.DEADLINE_MISSED))
        elif observation is not None:
            target = policy.step(observation)
            policy.add_flag(Flags.DEADLINE_MISSED)
            self._send(target)
        else:
            self._send(policy.hold(Flags.DEADLINE_MISSED))

    def _end(self, pace: Pace) -> None:
        """Send the safe target; where rates are limited, one step towards it a period until it is reached."""
        for _ in range(1 + int(END_LIMIT_S / self._period_s)):
            self._link.send(self._policy.step_to_safe(Flags.DEADLINE_MISSED), self._policy.flags)
            if Flags.RATE_LIMITED not in self._policy.flags:
                return
            pace.wait()

    def _send(self, target: Array) -> None:
        flags = self._policy.flags
        self._link.send(target, flags)
        self._log.add(self._policy.observation, target, flags)
        self.report.steps += 1
        if flags:
            for flag in Flags:
                if flag in flags and flag.name:
                    self.report.flagged[flag.name] = self.report.flagged.get(flag.name, 0) + 1
