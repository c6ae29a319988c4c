"""`pi-envs check --model FILE` and `--models GLOB`: what becomes of robots, before anybody trains them."""

from __future__ import annotations

import argparse
import contextlib
import glob
import io
import multiprocessing
import os
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from envs_gpu.engine_log import EngineLog
from envs_gpu.errors import EnvError
from envs_gpu.user_model import UserModel
from pi_incubator.config import explain_settings, load_with_sources
from pi_incubator.errors import UserError
from pi_incubator.evaluation.table import Cell, print_table, write_json

if TYPE_CHECKING:
    from envs_gpu.robot_report import RobotReport

CONFIG = "configs/ppo/hold_pose.yaml"
CHECK_TIMEOUT_S, TRAIN_TIMEOUT_S = 600.0, 3600.0
"""For one robot of many: to look at it, and to train it too. An insect takes timesteps of 0.1 ms."""
END_S = 10.0
"""For its process to end by itself."""
PRELOADED = ["torch", "tensordict", "torchrl", "mujoco", "envs_gpu.robot_report", "pi_incubator.run"]
"""Imported once, in the process that all others are forked from."""
TRAIN = (
    "env.name=hold_pose",
    "env.num_envs=64",
    "evaluation.num_episodes=8",
    "evaluation.video=false",
    "tracking.backend=none",
    "compute.compile=off",
    "compute.device=cpu",
)


@dataclass(frozen=True)
class Order:
    """What to do with one robot of many."""

    file: str
    settings: list[str]
    """As of `pi-train`: `env.model_root=DIR`, `env.limits.NAME=[low, high]`, ..."""
    backends: list[str]
    train_steps: int | None


def check_one(arguments: argparse.Namespace) -> int:
    """Print what there is to know about one robot; 2 where it is refused."""
    from envs_gpu.robot_report.page import page_of, png_of

    with Console(stderr=True).status("scene") as status, EngineLog(None):
        order = Order(arguments.model, arguments.settings, arguments.backend or ["mujoco"], None)
        report = _report(order, begins=status.update)
    print(report.file)
    for line in report.lines():
        print(f"  {line}")
    if arguments.json:
        write_json(report.as_json(), arguments.json)
    if arguments.out and arguments.out.suffix == ".png":
        if (png := png_of(report)) is None:
            raise UserError(f"{arguments.out}: no OpenGL driver works here; name a .html file")
        arguments.out.write_bytes(png)
    elif arguments.out:
        arguments.out.write_text(page_of(report), encoding="utf-8")
    return 0


def check_many(arguments: argparse.Namespace) -> int:
    """Look at every robot that a pattern finds, and print what became of them; 1 where one ended in an error
    that is not explained."""
    files = sorted(glob.glob(arguments.models, recursive=True))
    if not files:
        raise UserError(f"--models {arguments.models}: matches no file; quote the pattern")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    results: list[dict[str, Any]] = []
    backends = arguments.backend or ["mujoco"]
    settings = [_absolute(setting) for setting in arguments.settings]
    orders = [Order(os.path.abspath(file), settings, backends, arguments.train) for file in files]
    with _progress(len(files)) as advance, ThreadPoolExecutor(arguments.jobs) as pool:
        found = pool.map(lambda order: _look(context, order), orders)
        for name, order, result in zip(files, orders, found, strict=True):
            result |= {"file": name, "reason": result["reason"].replace(order.file, name)}
            results.append(result)
            advance(f"{result['outcome']}: {result['file']}")
    _print_results(results)
    if arguments.json:
        write_json({"robots": results}, arguments.json)
    return int(any(result["outcome"] in ("failed", "crashed", "timeout") for result in results))


def _look(context: Any, order: Order) -> dict[str, Any]:
    """The result for one robot, from a process of its own, which may crash or hang without harm."""
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(order, theirs))
    began_s = time.monotonic()
    process.start()
    theirs.close()
    timeout_s = TRAIN_TIMEOUT_S if order.train_steps else CHECK_TIMEOUT_S
    result: dict[str, Any] = {
        "file": order.file,
        "outcome": "timeout",
        "reason": f"more than {timeout_s:g} s",
    }
    if ours.poll(timeout_s):
        try:
            result = ours.recv()
        except EOFError:
            process.join()
            result |= {"outcome": "crashed", "reason": f"its process ended with {process.exitcode}"}
    process.join(END_S)
    process.kill()
    process.join()
    return result | {"wall_s": round(time.monotonic() - began_s, 1)}


def _child(order: Order, answer: Connection) -> None:
    """Send what became of one robot."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), _silence():
        try:
            result = _examine(order, folder)
        except (UserError, EnvError) as error:
            result = {"outcome": "refused", "reason": str(error)}
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(last.filename).name}:{last.lineno}"
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]} ({where})"
            result = {"outcome": "failed", "reason": reason}
    answer.send({"file": order.file} | result)
    answer.close()


def _report(order: Order, begins: Callable[[str], None] = lambda name: None) -> RobotReport:
    """The report on one robot, with the settings that training would have."""
    from envs_gpu.robot_report import report_on

    cfg, sources = load_with_sources(CONFIG, [*order.settings, f"env.model={order.file}"])
    robot = UserModel(order.file, cfg.env.model_root, cfg.env.limits)
    with explain_settings(sources, CONFIG):
        return report_on(robot, order.backends, cfg.env.keyframe, cfg.env.task, begins)


def _examine(order: Order, folder: str) -> dict[str, Any]:
    """The report, and where it was asked for a short training with all that follows it, in `folder`."""
    from pi_incubator.run import run

    with EngineLog(None):
        report = _report(order).as_json()
    if not order.train_steps:
        return report | {"outcome": "checked", "reason": ""}
    steps, place = f"training.total_steps={order.train_steps}", f"experiment.output_dir={folder}"
    run(CONFIG, [*TRAIN, *order.settings, f"env.model={order.file}", steps, place])
    return report | {"outcome": "trained", "reason": ""}


def _absolute(setting: str) -> str:
    """`setting` for another working directory."""
    name, _, value = setting.partition("=")
    return f"{name}={os.path.abspath(value)}" if name == "env.model_root" else setting


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """What engines and training print goes nowhere."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(io.StringIO()):
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
        yield


@contextlib.contextmanager
def _progress(number: int) -> Iterator[Any]:
    """A bar with the remaining time on a terminal, and one line a robot elsewhere."""
    console = Console(stderr=True, highlight=False, markup=False)
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        bar = progress.add_task("", total=number)

        def advance(text: str) -> None:
            progress.update(bar, advance=1, description=text)
            if not console.is_terminal:
                console.print(text, soft_wrap=True)

        yield advance


def _print_results(results: list[dict[str, Any]]) -> None:
    outcomes = Counter(result["outcome"] for result in results)
    rows: dict[str, dict[str, Cell]] = {
        outcome: {"robots": number, "share": f"{number / len(results):.1%}"}
        for outcome, number in outcomes.most_common()
    }
    print_table(rows, title=f"{len(results)} robots", first_column="outcome")
    for result in results:
        if result["reason"]:
            print(f"{result['outcome']} {result['file']}: {result['reason']}")
