"""`pi-envs`: which envs and robots there are, and whether a task keeps its promises on a physics backend."""

from __future__ import annotations

import argparse
import importlib.util
import inspect
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

from envs_gpu.errors import EnvError, RobotUnavailableError
from envs_gpu.physics import BACKENDS
from envs_gpu.tasks import TASKS
from envs_gpu.zoo import FAMILIES
from pi_incubator.cli._main import run
from pi_incubator.cli._parser import Parser, count, known_names, output_file
from pi_incubator.cli._robots import check_many, check_one
from pi_incubator.config.check import lacking
from pi_incubator.errors import UserError
from pi_incubator.evaluation.table import print_table, write_json

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


def main(argv: list[str]) -> int:
    """Parse the command line and run the subcommand; see `pi-envs --help`. Gives the exit code."""
    arguments = _parse(argv)
    code: int = arguments.run(arguments)
    return code


def show_list(arguments: argparse.Namespace) -> int:
    """One line for every task and env family."""
    from envs_gpu.robots import without_downloads

    with without_downloads():
        rows = {name: _describe(name) for name in TASKS.names()}
    print_table(rows, title="tasks", first_column="env.name")
    _print_missing(rows)
    families = {}
    for name in FAMILIES.names():
        family = FAMILIES.get(name)
        missing = [module for module in family.modules if importlib.util.find_spec(module) is None]
        families[f"{name}/..."] = {
            "what": (inspect.getdoc(family) or "").partition("\n")[0],
            "runs on": "CPU and GPU" if family.on_cuda else "CPU",
            "needs": ", ".join(family.modules)
            + (f"; to get it: {family.install}" if missing else ", at hand"),
        }
    print_table(families, title="env families written elsewhere", first_column="env.name")
    return 0


def _describe(name: str) -> dict[str, Any]:
    from envs_gpu.make import make_env

    try:
        import torch

        env = make_env(name, backend="mujoco", num_envs=1, device=torch.device("cpu"))
    except RobotUnavailableError as error:
        return {"backends": _backends_of(name), "robot": f"{error.robot}: not here"}
    except EnvError as error:
        return {"backends": str(error)}
    spec = env.spec
    env.close()
    return {
        "observes": ", ".join(f"{group} {width}" for group, width in spec.obs_dims.items()),
        "actions": spec.action_dim,
        "Hz": f"{spec.control_hz:.4g}",
        "episode s": f"{spec.episode_length_s:.4g}",
        "backends": _backends_of(name),
    }


def _backends_of(name: str) -> str:
    """The backends that a task runs on, and why it does not run on others."""
    lacks = TASKS.get(name).unsupported
    runs = ", ".join(backend for backend in BACKENDS.names() if backend not in lacks)
    return "; ".join([runs, *(f"not {backend}: {reason}" for backend, reason in lacks.items())])


def _print_missing(rows: dict[str, dict[str, Any]]) -> None:
    """One line for each robot whose files are not on this machine."""
    tasks: dict[str, list[str]] = {}
    for name, row in rows.items():
        if robot := row.get("robot"):
            tasks.setdefault(robot.partition(":")[0], []).append(name)
    for robot, names in tasks.items():
        source = "not in MENAGERIE_ROOT" if os.environ.get("MENAGERIE_ROOT") else "downloaded at first use"
        print(f"{robot} is not on this machine ({source}); it is the robot of {', '.join(names)}")


def show_robots(arguments: argparse.Namespace) -> int:
    """Every robot and model, and whether its files are here."""
    from envs_gpu.robots import ROBOTS, files_of, gymnasium_models, robot_model

    elsewhere = "not in MENAGERIE_ROOT" if os.environ.get("MENAGERIE_ROOT") else "downloaded at first use"
    rows = {}
    for name, robot in ROBOTS.items():
        files = files_of(robot)
        rows[name] = {
            "what": robot.description,
            "joints": len(list(robot_model(robot).joints)) if files else None,
            "menagerie": f"{robot.folder}, {robot.entry}",
            "files": str(files) if files else elsewhere,
        }
    print_table(rows, title="robots of MuJoCo Menagerie", first_column="robot")
    print(f"models that come with gymnasium, at hand: {', '.join(gymnasium_models())}")
    return 0


def show_check(arguments: argparse.Namespace) -> int:
    """Check whether tasks keep their promises on a backend, or what becomes of a robot."""
    _refuse_unknown(arguments)
    if arguments.model:
        return check_one(arguments)
    if arguments.models:
        return check_many(arguments)
    return _check_tasks(arguments)


def _check_tasks(arguments: argparse.Namespace) -> int:
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


def show_replay(arguments: argparse.Namespace) -> int:
    """Re-run the dump of a broken world in C MuJoCo, and print when it broke."""
    from envs_gpu.replay import report

    title, rows, verdict = report(arguments.dump)
    print_table(rows, title=title, first_column="step")
    print(verdict)
    return 0


def _refuse_unknown(arguments: argparse.Namespace) -> None:
    """Refuse contradictions, and backends that are unknown or not installed.

    Raises:
        UserError: there is one.
    """
    asked = [bool(arguments.tasks or arguments.all), bool(arguments.model), bool(arguments.models)]
    if not any(asked):
        raise UserError("pi-envs check: nothing is named; name tasks, or give --all, --model or --models")
    if sum(asked) > 1:
        raise UserError("pi-envs check: tasks, --model and --models exclude each other; give one of them")
    for option, needed in (("out", "model"), ("train", "models")):
        if getattr(arguments, option) and not getattr(arguments, needed):
            raise UserError(f"--{option}: goes with --{needed} only; leave it out")
    for backend in known_names(BACKENDS, arguments.backend or []):
        if lack := lacking(backend):
            raise UserError(f"backend {backend}: needs {lack[0]}, not installed here; {lack[1]}")


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


def page(text: str) -> Path:
    """An .html or .png file in an existing folder, for `type=`."""
    path = output_file(text)
    if path.suffix not in (".html", ".png"):
        raise argparse.ArgumentTypeError(f"{text!r} ends neither in .html nor in .png")
    return path


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(prog="pi-envs", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, function: Any) -> argparse.ArgumentParser:
        summary = (function.__doc__ or "").partition("\n")[0]
        command = commands.add_parser(name, help=summary, description=summary)
        command.set_defaults(run=function)
        return command

    add("list", show_list)
    add("robots", show_robots)
    check = add("check", show_check)
    check.add_argument("tasks", nargs="*", metavar="NAME", help="tasks to check")
    check.add_argument("--all", action="store_true", help="every task")
    check.add_argument(
        "--model", metavar="FILE", help="a robot, as in env.model: what training would see of it"
    )
    check.add_argument("--models", metavar="GLOB", help="many robots: what becomes of each; ** is any folder")
    check.add_argument("--train", type=count, metavar="STEPS", help="also train and export each of --models")
    check.add_argument(
        "--out", type=page, metavar="FILE", help="report on --model as .html, or its picture as .png"
    )
    check.add_argument(
        "--backend", nargs="+", metavar="NAME", help="default: all that are installed; with --model: mujoco"
    )
    jobs = min(2, os.cpu_count() or 1)
    check.add_argument("--jobs", type=count, default=jobs, help="pairs at a time (default: %(default)s)")
    check.add_argument("--json", type=output_file, metavar="FILE", help="also write everything there")
    replay = add("replay", show_replay)
    replay.add_argument("dump", metavar="DUMP", type=Path, help="file that a run wrote about a broken world")
    return parser.parse_args(argv)


def cli() -> None:
    """Entry point of the console script."""
    run(main)


if __name__ == "__main__":
    cli()
