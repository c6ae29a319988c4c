"""The tracker that the loop holds: it times, derives throughput and hands on to all others."""

from __future__ import annotations

import logging
import textwrap
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pi_incubator import faults
from pi_incubator.masking import masked
from pi_incubator.tracking._base import Status, Tracker

MAX_REASON = 300  # characters of another library's words in a warning

log = logging.getLogger(__name__)


class CompositeTracker(Tracker):
    """Adds to every log, over the time since the log before it:

    - `env_steps_per_s`: environment steps per wall second, everything included;
    - `time/<span>_s`: wall seconds spent in each span. On CUDA that is when work was queued, not when it ran,
      unless the span itself waits for the device.

    A tracker that fails is named in a warning, once until it works again. Neither the training nor the other
    trackers are disturbed.

    Args:
        trackers: where the logs go.
        env_steps: environment steps that the run has already taken.
    """

    def __init__(self, trackers: Sequence[Tracker], env_steps: int = 0) -> None:
        self._trackers = trackers
        self._failing: set[Tracker] = set()
        self._span_s: defaultdict[str, float] = defaultdict(float)
        self._last_s, self._last_env_steps = time.perf_counter(), env_steps

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        began_s = time.perf_counter()
        try:
            yield
        finally:
            self._span_s[name] += time.perf_counter() - began_s

    def log(self, iteration: int, env_steps: int, metrics: Mapping[str, float]) -> None:
        now_s = time.perf_counter()
        throughput = (env_steps - self._last_env_steps) / (now_s - self._last_s)
        times = {f"time/{name}_s": seconds for name, seconds in self._span_s.items()}
        everything = {**metrics, **times, "env_steps_per_s": throughput}
        self._last_s, self._last_env_steps = now_s, env_steps
        self._span_s.clear()
        self._each(lambda tracker: tracker.log(iteration, env_steps, everything))

    def log_params(self, params: Mapping[str, Any]) -> None:
        self._each(lambda tracker: tracker.log_params(params))

    def log_artifact(self, path: Path) -> None:
        self._each(lambda tracker: tracker.log_artifact(path))

    def close(self, status: Status = "finished") -> None:
        self._each(lambda tracker: tracker.close(status))

    def _each(self, call: Callable[[Tracker], None]) -> None:
        """Call every tracker; what one raises becomes a warning: metrics are worth less than the training."""
        for tracker in self._trackers:
            try:
                if tracker is self._trackers[0]:
                    faults.reach("tracker")
                call(tracker)
            except Exception as error:  # other libraries raise what they like
                if tracker not in self._failing:
                    reason = textwrap.shorten(masked(f"{type(error).__name__}: {error}"), MAX_REASON)
                    log.warning("%s failed (%s); the training goes on", type(tracker).__name__, reason)
                self._failing.add(tracker)
            else:
                self._failing.discard(tracker)
