"""Where an iteration of our training goes: a table from clocks, and a Chrome trace from torch's profiler.

The clocks run without the profiler, which would slow what has many small operations more than the rest. A
minibatch, from its loss to the new weights, is one compiled function; what is inside it is in the trace.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from torch.profiler import ProfilerActivity, profile, record_function

from bench._loops.pi_incubator import OurLoop
from bench._result import Metric, make_metric
from pi_incubator.config import ExperimentConfig
from pi_incubator.errors import UserError
from pi_incubator.evaluation.table import Cell, print_table

TRACE_NAME = "trace.json"
TRACED_ITERATIONS = 2
STAGES = {
    "collect": "",
    "collect: policy": "collect",
    "collect: physics": "collect",
    "update": "",
    "update: advantage": "update",
    "update: minibatches": "update",
}
"""Stage -> the stage that contains it."""

Seconds = dict[str, float]


class StageClock:
    """Seconds spent in each stage since the last `pop`; a stage is also a range of the trace."""

    def __init__(self, synchronize: Callable[[], None]) -> None:
        self._synchronize = synchronize
        self._spent: defaultdict[str, float] = defaultdict(float)

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, counted to `stage`."""

        def run(*arguments: Any, **options: Any) -> Any:
            self._synchronize()
            began_s = time.perf_counter()
            with record_function(stage):
                result = function(*arguments, **options)
                self._synchronize()
            self._spent[stage] += time.perf_counter() - began_s
            return result

        return run

    def pop(self) -> Seconds:
        """What was spent, and start again."""
        spent, self._spent = dict(self._spent), defaultdict(float)
        return spent


def profile_training(cfg: ExperimentConfig, folder: Path, num_iterations: int) -> dict[str, Metric]:
    """Print the table, write the trace to `folder`, and give the stages' milliseconds per iteration.

    Raises:
        UserError: the config lets the update go on in the background, where stages overlap; or `folder`
            cannot be written to.
    """
    if cfg.training.overlap:
        raise UserError("training.overlap = true: --profile needs stages one after another; set it to false")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--profile {folder}: cannot be made ({error.strerror}); name a folder") from None
    loop = OurLoop(cfg)
    loop.warm_up()
    clock = StageClock(loop.synchronize)
    rounds: list[Seconds] = []
    with _instrumented(loop, clock):
        iterate = clock.timed("iteration", loop.iterate)
        for _ in range(num_iterations):
            iterate()
            rounds.append(clock.pop())
        on_cuda = loop.env.device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
        with profile(activities=activities) as profiler:
            for _ in range(TRACED_ITERATIONS):
                iterate()
    profiler.export_chrome_trace(str(folder / TRACE_NAME))
    metrics = {
        f"profile: {stage}": make_metric([1e3 * spent.get(stage, 0.0) for spent in rounds], "ms", "lower")
        for stage in ("iteration", *STAGES)
    }
    _print(metrics, folder / TRACE_NAME)
    return metrics


@contextmanager
def _instrumented(loop: OurLoop, clock: StageClock) -> Iterator[None]:
    """Put the clock around the stages, and take it off again."""
    algorithm: Any = loop.algorithm
    env: Any = loop.env
    targets: list[tuple[Any, str, str]] = [
        (algorithm, "collect", "collect"),
        (algorithm, "act", "collect: policy"),
        (env.physics, "step", "collect: physics"),
        (algorithm, "advantage", "update: advantage"),
        (algorithm, "update", "update"),
        (algorithm, "step", "update: minibatches"),
    ]
    patches = [
        patch.object(owner, name, clock.timed(stage, getattr(owner, name)))
        for owner, name, stage in targets
        if hasattr(owner, name)  # not every algorithm has every stage
    ]
    for one in patches:
        one.start()
    try:
        yield
    finally:
        for one in reversed(patches):
            one.stop()


def _print(metrics: dict[str, Metric], trace: Path) -> None:
    whole = metrics["profile: iteration"]["median"]
    rows: dict[str, dict[str, Cell]] = {}
    for stage in STAGES:
        found = metrics[f"profile: {stage}"]
        rows[stage] = {"ms": found["median"], "min": found["min"], "max": found["max"]}
        rows[stage]["of the iteration"] = f"{found['median'] / whole:.1%}"
    for parent in ("collect", "update"):
        parts = (f"profile: {stage}" for stage, within in STAGES.items() if within == parent)
        rest = metrics[f"profile: {parent}"]["median"] - sum(metrics[part]["median"] for part in parts)
        rows[f"{parent}: the rest"] = {"ms": rest, "of the iteration": f"{rest / whole:.1%}"}
    print_table(dict(sorted(rows.items())), title=f"an iteration of {whole:.1f} ms", first_column="stage")
    print(f"trace: {trace} (open it in chrome://tracing or Perfetto)")
