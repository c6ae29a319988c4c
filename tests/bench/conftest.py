"""What the tests of `pi-bench` share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench._result import Metric, make_metric, make_result

ROOT = Path(__file__).parents[2]
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run_bench(tmp_path: Path) -> Run:
    """`pi-bench` in a process of its own, in an empty folder."""

    def run(*argv: str | Path) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "bench.cli", *map(str, argv)]
        search_path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        environment = os.environ | {"PYTHONPATH": search_path}
        return subprocess.run(
            line, capture_output=True, text=True, timeout=300, cwd=tmp_path, env=environment
        )

    return run


@pytest.fixture
def result() -> dict[str, Any]:
    """A result with metrics that are judged either way and one that is told."""
    metrics: dict[str, Metric] = {
        "ant: env": make_metric([990.0, 1000.0, 1010.0], "env steps/s"),
        "ant: rollout": make_metric([1180.0, 1200.0, 1230.0], "env steps/s", ""),
        "start": make_metric([4.9, 5.0, 5.1], "s", "lower"),
    }
    return make_result("sim", {"task": "ant", "num_envs": {"mujoco": 64}}, metrics)
