"""Wall-clock time until the return of training reaches a number, ours beside a peer's, in alternating turns.

The rule is the same for all: the mean over the last 100 episodes of training, read after every iteration.
Building and compiling count, because whoever waits for a policy waits for them too.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from bench._result import Metric, make_metric
from bench._train_plan import OURS, Entry
from bench._worker import Budget, Worker
from pi_incubator.evaluation.table import Cell, print_table, show


@dataclass
class Progress:
    """How far one loop has come."""

    startup_s: float
    wall_s: float
    """Including `startup_s`."""
    env_steps: int = 0
    """Without those of the warm-up, which `wall_s` includes."""
    recent_return: float | None = None
    reached: bool = False


def race(
    entries: dict[str, Entry], target: float, limit_s: float, turn_s: float
) -> tuple[dict[str, Progress], dict[str, dict[str, Any]]]:
    """Progress and facts by label; turns alternate until all are there or have used up `limit_s` each."""
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        done: dict[str, Progress] = {}
        for label, entry in entries.items():
            worker = workers[label] = stack.enter_context(Worker(entry.loop, entry.settings))
            done[label] = Progress(worker.ready_s, worker.ready_s)
        while running := [label for label, one in done.items() if not one.reached and one.wall_s < limit_s]:
            for label in running:
                one = done[label]
                left_s = min(turn_s, limit_s - one.wall_s)
                turn = workers[label].run(Budget(seconds=left_s, until_return=target))
                one.wall_s += turn.wall_s
                one.env_steps += turn.env_steps
                one.recent_return = turn.recent_return
                one.reached = turn.recent_return is not None and turn.recent_return >= target
                shown = "fewer than 100 episodes" if turn.recent_return is None else show(turn.recent_return)
                print(f"{label}: {one.wall_s:.0f} s, {one.env_steps:,} steps: {shown}", file=sys.stderr)
        return done, {label: worker.facts for label, worker in workers.items()}


def metrics_of(done: dict[str, Progress], target: float) -> dict[str, Metric]:
    """Times of those that arrived, and how often ours fits into the peer's: a bound where only we did."""
    name = f"time to return {target:g}"
    metrics = {
        f"{name}: {label}": make_metric([one.wall_s], "s", "lower" if label == OURS else "")
        for label, one in done.items()
        if one.reached
    }
    if done[OURS].reached:
        for label, one in done.items():
            if label != OURS:
                ratio = make_metric([one.wall_s / done[OURS].wall_s], "ratio")
                metrics[f"{name}: {label}/{OURS}"] = ratio | {"at_least": not one.reached}
    return metrics


def print_race(done: dict[str, Progress], target: float, left_out: dict[str, str]) -> None:
    """One row a loop, and one for each peer that is left out, with the reason."""
    rows: dict[str, dict[str, Cell]] = {}
    for label, one in done.items():
        more = "" if one.reached else "> "
        rows[label] = {
            "time s": f"{more}{one.wall_s:.0f}",
            "of which start-up s": one.startup_s,
            "env steps": one.env_steps,
            "return": one.recent_return,
        }
        if label != OURS and done[OURS].reached:
            rows[label]["times ours"] = f"{more}{one.wall_s / done[OURS].wall_s:.1f}"
    rows |= {peer: {"note": f"left out: {reason}"} for peer, reason in left_out.items()}
    title = f"wall-clock time until the mean of the last 100 episodes of training is {target:g}"
    print_table(rows, title=title, first_column="loop")
