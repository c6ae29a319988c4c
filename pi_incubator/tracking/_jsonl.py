"""One JSON object a log in the run's `metrics.jsonl`, whatever the tracking store."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from pi_incubator.config import ExperimentConfig
from pi_incubator.run_folder import RunFolder
from pi_incubator.tracking._base import Status, Tracker


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The logs in `path`, oldest first: `iteration`, `env_steps`, `wall_s` and the metrics by name.

    A metric that was NaN or infinite is None. A last line that a kill cut short is left out.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]  # every complete line ends in a newline


class JsonlTracker(Tracker):
    """Appends to the metrics file.

    A continued run drops what was logged after its checkpoint when it first logs something itself: where it
    fails to start, the file stays as it is.
    """

    def __init__(self, cfg: ExperimentConfig, folder: RunFolder, start_iteration: int = 0) -> None:
        self._path = folder.metrics
        kept = [row for row in read_metrics(self._path) if row["iteration"] < start_iteration]
        self._kept = "".join(map(_line, kept))
        self._file: TextIO | None = None
        self._began_s = time.perf_counter() - (kept[-1]["wall_s"] if kept else 0.0)

    def log(self, iteration: int, env_steps: int, metrics: Mapping[str, float]) -> None:
        wall_s = round(time.perf_counter() - self._began_s, 6)
        row = {"iteration": iteration, "env_steps": env_steps, "wall_s": wall_s}
        file = self._file = self._file or self._opened()
        file.write(_line(row | {name: _finite(value) for name, value in metrics.items()}))
        file.flush()

    def close(self, status: Status = "finished") -> None:
        if self._file is not None:
            self._file.close()

    def _opened(self) -> TextIO:
        """The file, with the rows that stay."""
        partial = self._path.with_suffix(".partial")
        partial.write_text(self._kept, encoding="utf-8")
        partial.replace(self._path)
        return self._path.open("a", encoding="utf-8")


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row) + "\n"


def _finite(value: float) -> float | None:
    """JSON has neither NaN nor infinity."""
    return value if math.isfinite(value) else None
