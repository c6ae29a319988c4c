"""What the training loop may ask of a tracker."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

Status = Literal["finished", "failed", "interrupted"]


class Tracker:
    """Where a run's metrics go: here, nowhere. An entry overrides what it records.

    Entries are made as `entry(cfg, folder, start_iteration)`: the experiment, its `RunFolder`, and the first
    iteration that will be logged (above 0 when the run continues).
    """

    def span(self, name: str) -> AbstractContextManager[None]:
        """Time a part of the iteration, in wall seconds; never waits for the device."""
        return nullcontext()

    def log(self, iteration: int, env_steps: int, metrics: Mapping[str, float]) -> None:
        """Record `metrics` by name.

        Args:
            iteration: the one just completed, counted from 0.
            env_steps: environment steps since the run began, over all worlds.
            metrics: plain numbers.
        """

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record settings by name."""

    def log_artifact(self, path: Path) -> None:
        """Record a file."""

    def close(self, status: Status = "finished") -> None:
        """Write what is pending and end the run; nothing is logged afterwards."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close("finished")
        else:
            self.close("interrupted" if issubclass(kind, KeyboardInterrupt) else "failed")
