"""Waking at a fixed rate, and what the system can lend for it."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import ScheduleError


class Pace:
    """Ticks whose times are multiples of the period from the start, so that lateness does not add up.

    Args:
        period_s: between ticks.
    """

    def __init__(self, period_s: float) -> None:
        self._period_ns = round(period_s * 1e9)
        self._tick_ns = time.monotonic_ns()

    @property
    def tick_ns(self) -> int:
        """When the present period began, as `time.monotonic_ns()`."""
        return self._tick_ns

    def wait(self) -> int:
        """Sleep until the next tick.

        Returns:
            Deadlines that were missed: 0 where the work since the last tick fitted into its period.
        """
        self._tick_ns += self._period_ns
        late_ns = time.monotonic_ns() - self._tick_ns
        if late_ns < 0:
            time.sleep(-late_ns / 1e9)
            return 0
        num_skipped = late_ns // self._period_ns
        self._tick_ns += num_skipped * self._period_ns
        return 1 + num_skipped


@contextmanager
def real_time(priority: int | None) -> Iterator[None]:
    """Run what is inside without pauses of the garbage collector, and before every ordinary process.

    Args:
        priority: 1 to 99 for Linux's SCHED_FIFO, where nothing of a lower priority runs while this one does
            not sleep; None leaves the scheduler alone.

    Raises:
        ScheduleError: the system does not permit it.
    """
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    if priority is not None:
        _set_fifo(priority)
    collects = gc.isenabled()
    gc.collect()
    gc.disable()  # a step leaves no cycles behind
    try:
        yield
    finally:
        if collects:
            gc.enable()
        if priority is not None:
            os.sched_setscheduler(0, *before)


def _set_fifo(priority: int) -> None:
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    except PermissionError:
        raise ScheduleError(
            f"realtime: priority {priority} is not permitted; give CAP_SYS_NICE, or LimitRTPRIO={priority} in"
            " the service (ulimit -r in a shell), or leave the option out"
        ) from None
    except (OSError, ValueError, OverflowError) as error:
        low, high = (os.sched_get_priority_min(os.SCHED_FIFO), os.sched_get_priority_max(os.SCHED_FIFO))
        raise ScheduleError(f"realtime: priority {priority} ({error}); give {low} to {high}") from None
