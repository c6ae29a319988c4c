"""Progress on the terminal: a bar where there is one, else a line now and then."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from pi_incubator.config import ExperimentConfig
from pi_incubator.provenance import flatten
from pi_incubator.run_folder import RunFolder
from pi_incubator.tracking._base import Status, Tracker

SECONDS_BETWEEN_LINES = 10.0


def summary(
    cfg: ExperimentConfig, folder: RunFolder, start_iteration: int = 0, world_size: int = 1
) -> list[str]:
    """The experiment in a few lines: what is trained, what differs from the defaults, and where it goes."""
    changed = [f"{key}={value}" for key, value in flatten(cfg).items() if value != _default(cfg, key)]
    lines = [
        f"{cfg.experiment.name}: {cfg.algorithm.name} + {cfg.network.name} on {cfg.env.name}, "
        f"{cfg.num_iterations(world_size):,} iterations of {world_size * cfg.steps_per_iteration:,} steps "
        f"in {world_size * cfg.env.num_envs:,} worlds, seed {cfg.experiment.seed}",
        f"changed from the defaults: {', '.join(changed) or 'nothing'}",
        f"writing to {folder.path}",
    ]
    return lines + ([f"continuing at iteration {start_iteration:,}"] if start_iteration else [])


def _default(cfg: ExperimentConfig, field: str) -> Any:
    """The default of `section.key`, as a JSON type."""
    section, key = field.split(".")
    settings = type(getattr(cfg, section))
    default = settings.fields_by_key()[key].get_default(call_default_factory=True)
    return list(default) if isinstance(default, tuple) else default


class ConsoleTracker(Tracker):
    """Shows iteration, environment steps, throughput, return and the time left."""

    def __init__(
        self,
        cfg: ExperimentConfig,
        folder: RunFolder,
        start_iteration: int = 0,
        world_size: int = 1,
        console: Console | None = None,
    ) -> None:
        self._console = console or Console(soft_wrap=True, emoji=False, highlight=False)
        self._num_iterations, self._start = cfg.num_iterations(world_size), start_iteration
        self._began_s, self._shown_s = time.perf_counter(), float("-inf")
        self._unshown = ""
        for line in summary(cfg, folder, start_iteration, world_size):
            self._console.print(line, markup=False)
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f}%"))
        self._bar = Progress(*columns, console=self._console)
        self._task = self._bar.add_task("", total=self._num_iterations, completed=start_iteration)
        if self._console.is_terminal:
            self._bar.start()

    def log(self, iteration: int, env_steps: int, metrics: Mapping[str, float]) -> None:
        now_s = time.perf_counter()
        text = self._describe(iteration + 1, env_steps, metrics, now_s)
        is_last = iteration + 1 == self._num_iterations
        if self._console.is_terminal:
            self._bar.update(self._task, completed=iteration + 1, description=text)
            if is_last:  # what is printed from here on stands below the bar
                self._bar.stop()
        elif is_last or now_s - self._shown_s >= SECONDS_BETWEEN_LINES:
            self._console.print(text, markup=False)
            self._shown_s, self._unshown = now_s, ""
        else:
            self._unshown = text

    def close(self, status: Status = "finished") -> None:
        if self._console.is_terminal:
            self._bar.stop()
        elif self._unshown:
            self._console.print(self._unshown, markup=False)
        elapsed = timedelta(seconds=round(time.perf_counter() - self._began_s))
        self._console.print(f"{status} after {elapsed}", markup=False)

    def _describe(self, done: int, env_steps: int, metrics: Mapping[str, float], now_s: float) -> str:
        left_s = (now_s - self._began_s) / (done - self._start) * (self._num_iterations - done)
        parts = [f"iteration {done:,}/{self._num_iterations:,}", f"{env_steps:,} steps"]
        parts.append(f"{metrics.get('env_steps_per_s', 0.0):,.0f} steps/s")
        if "episode/return" in metrics:
            parts.append(f"return {metrics['episode/return']:,.1f}")
        return "  ".join([*parts, f"ETA {timedelta(seconds=round(left_s))}"])
