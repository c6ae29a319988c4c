"""`pi-envs`: which envs and robots there are, and whether a task keeps its promises on a physics backend."""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import os
from pathlib import Path
from typing import Any

from envs_gpu.errors import EnvError, RobotUnavailableError
from envs_gpu.physics import BACKENDS
from envs_gpu.tasks import TASKS
from envs_gpu.zoo import FAMILIES
from pi_incubator.cli._main import run
from pi_incubator.cli._pairs import check_pairs
from pi_incubator.cli._parser import Parser, count, known_names, output_file
from pi_incubator.cli._robots import check_many, check_one
from pi_incubator.config.check import lacking
from pi_incubator.errors import UserError
from pi_incubator.evaluation.table import print_table


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
    arguments.settings = [word for word in arguments.tasks if "=" in word]
    arguments.tasks = [word for word in arguments.tasks if "=" not in word]
    _refuse_unknown(arguments)
    if arguments.model:
        return check_one(arguments)
    if arguments.models:
        return check_many(arguments)
    return check_pairs(arguments)


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
    if arguments.settings and not (arguments.model or arguments.models):
        raise UserError(f"{arguments.settings[0]}: settings go with --model and --models only; leave it out")
    for option, needed in (("out", "model"), ("train", "models")):
        if getattr(arguments, option) and not getattr(arguments, needed):
            raise UserError(f"--{option}: goes with --{needed} only; leave it out")
    for backend in known_names(BACKENDS, arguments.backend or []):
        if lack := lacking(backend):
            raise UserError(f"backend {backend}: needs {lack[0]}, not installed here; {lack[1]}")


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
    check.add_argument(
        "tasks",
        nargs="*",
        metavar="NAME",
        help="tasks to check; with --model and --models, settings as of pi-train",
    )
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
