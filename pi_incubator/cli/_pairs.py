"""`pi-envs check TASK...`: does a task keep its promises on a backend, each pair in a process of its own."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from envs_gpu.physics import BACKENDS
from envs_gpu.tasks import TASKS
from pi_incubator.cli._parser import known_names
from pi_incubator.config.check import lacking
from pi_incubator.evaluation.table import write_json

SOURCE_ROOT = Path(__file__).resolve().parents[2]
PAIR_TIMEOUT_S = 3600.0
WIDTH_WHEN_PIPED = 170  # rich would wrap at 80 columns, in the middle of names
MARKS = {"ok": "[green]ok", "failed": "[red]FAILED", "named": "[yellow]named", "skipped": "[dim]-"}


@dataclass
class Outcome:
    """What became of a task on a backend."""

    task: str
    backend: str
    reason: str = ""
    """Why it was not checked; empty where it was."""
    findings: list[dict[str, Any]] = field(default_factory=list)
    """As `envs_gpu.check.Finding` has them."""

    @property
    def failed(self) -> bool:
        return any(finding["status"] == "failed" for finding in self.findings)


def check_pairs(arguments: argparse.Namespace) -> int:
    """Check every pair that was asked for; 1 where a check fails."""
    outcomes = _plan(arguments)
    waiting = [outcome for outcome in outcomes if not outcome.reason]
    with _Display(len(waiting)) as display, ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(lambda outcome: _examine(outcome, display), waiting))
    _print_outcomes(outcomes)
    if arguments.json:
        pairs = [vars(outcome) | {"failed": outcome.failed} for outcome in outcomes]
        write_json({"pairs": pairs}, arguments.json)
    return int(any(outcome.failed for outcome in outcomes))


def _plan(arguments: argparse.Namespace) -> list[Outcome]:
    """The pairs that were asked for, those that cannot be checked with their reason."""
    from envs_gpu.check import unsupported

    tasks = known_names(TASKS, TASKS.names() if arguments.all else arguments.tasks)
    outcomes = []
    for task in tasks:
        for backend in dict.fromkeys(arguments.backend or BACKENDS.names()):
            lack = lacking(backend)
            reason = unsupported(task, backend) or (lack and f"needs {lack[0]}: {lack[1]}") or ""
            outcomes.append(Outcome(task, backend, reason))
    return outcomes


def _examine(outcome: Outcome, display: _Display) -> None:
    """Check one pair in a process of its own, which may crash or hang without harm."""
    pair = f"{outcome.task} on {outcome.backend}"
    line = display.add(pair)
    search_path = os.pathsep.join(filter(None, [str(SOURCE_ROOT), os.environ.get("PYTHONPATH")]))
    began = "start"
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            worker_command(outcome),
            env=os.environ | {"PYTHONPATH": search_path},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        alarm = threading.Timer(PAIR_TIMEOUT_S, process.kill)
        alarm.start()
        try:
            for event in _events(process):
                if "begins" in event:
                    began = event["begins"]
                    display.says(line, f"{pair}: {began}")
                else:
                    outcome.findings.append(event)
            if process.wait() or not outcome.findings:
                outcome.findings.append(_crash(began, process.returncode, errors))
        finally:
            alarm.cancel()
            process.kill()
            process.wait()
    display.done(line, f"{pair}: {'FAILED' if outcome.failed else 'ok'}")


def worker_command(outcome: Outcome) -> list[str]:
    """What checks a pair and prints one event a line."""
    return [sys.executable, "-m", "envs_gpu.check", outcome.task, outcome.backend]


def _events(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    assert process.stdout is not None
    for line in process.stdout:
        yield json.loads(line)


def _crash(check: str, code: int, errors: IO[str]) -> dict[str, Any]:
    errors.seek(0)
    last_line = (errors.read().strip().splitlines() or ["without a word"])[-1]
    how = f"crashed with {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
    detail = f"its process {how}: {last_line}"
    return {"check": check, "status": "failed", "detail": detail, "wall_s": 0.0}


def _print_outcomes(outcomes: Sequence[Outcome]) -> None:
    """One row a pair, then what is behind each failure and each named deviation."""
    checks = dict.fromkeys(finding["check"] for outcome in outcomes for finding in outcome.findings)
    table = Table("task", "backend", *checks, "note")
    notes: list[str] = []
    for outcome in outcomes:
        found = {finding["check"]: finding for finding in outcome.findings}
        cells = [_cell(found.get(check)) for check in checks]
        told = [name for name, finding in found.items() if finding["status"] in ("failed", "named")]
        note = f"unsupported: {outcome.reason}" if outcome.reason else f"see below: {', '.join(told)}"
        table.add_row(outcome.task, outcome.backend, *cells, escape(note) if outcome.reason or told else "")
        for name in told:
            status, detail = found[name]["status"], found[name]["detail"]
            notes.append(f"{MARKS[status]}[/] {outcome.task} on {outcome.backend}, {name}: {escape(detail)}")
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH_WHEN_PIPED)
    console.print(table)
    for note in notes:
        console.print(note, soft_wrap=True)
    if "drift" in checks:
        console.print("drift: what one control step adds to the referee's states, median (largest)")
    checked = [outcome for outcome in outcomes if not outcome.reason]
    num_failed = sum(outcome.failed for outcome in checked)
    print(f"{len(checked)} pairs checked, {num_failed} failed, {len(outcomes) - len(checked)} not supported")


def _cell(finding: dict[str, Any] | None) -> str:
    if finding is None:
        return ""
    mark = MARKS[finding["status"]]
    if finding["check"] == "drift" and finding["status"] == "ok":
        return f"{mark}[/] {escape(finding['detail'])}"
    return mark


class _Display:
    """Which pair is at which check: lines that change on a terminal, and one a pair elsewhere."""

    def __init__(self, num_pairs: int) -> None:
        console = Console(stderr=True, highlight=False)
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._num_done, self._num_pairs = 0, num_pairs

    def add(self, text: str) -> TaskID:
        return self._progress.add_task(escape(text), total=None)

    def says(self, line: TaskID, text: str) -> None:
        self._progress.update(line, description=escape(text))

    def done(self, line: TaskID, text: str) -> None:
        self._progress.remove_task(line)
        self._num_done += 1
        self._progress.console.print(f"{self._num_done} of {self._num_pairs}: {escape(text)}")

    def __enter__(self) -> _Display:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()
