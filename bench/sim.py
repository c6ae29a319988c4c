"""Steps per second of bare physics and of whole env steps, and the share of an env step that is not physics.

Of every task and backend, each pair in a process of its own. Physics is the backend's own `step`: all
substeps of a control step under the task's controls, and the sensors of the state that it returns. Not
physics is all else that `env.step` does: clipping and mapping actions, rewards, ends, observations, and
restarts with the physics of those. Both run from the same states, in turns of ten control steps, with random
actions; only the env restarts worlds. `rollout` is `mujoco.rollout` alone, without sensors.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from statistics import median
from typing import Any

from bench._machine import fresh_environment
from bench._output import add_output_arguments, write_outputs
from bench._result import Metric, make_metric, make_result
from envs_gpu.physics import BACKENDS
from envs_gpu.tasks import TASKS
from pi_incubator.cli._parser import count, known_names
from pi_incubator.config.check import lacking
from pi_incubator.errors import UserError
from pi_incubator.evaluation.table import Cell, print_table

NUM_ENVS = {"mujoco": 256, "warp": 1024, "newton": 1024, "mjx": 64}
"""On a CPU; mjx is 50 times slower than C there."""
NUM_ENVS_ON_CUDA = 4096
USUAL_TASKS, USUAL_BACKENDS, ALL = ("ant", "go1_velocity"), ("mujoco", "warp"), "all"
"""Minutes on two cores; everything takes hours, as MJX compiles for long."""

NOT_PHYSICS = "not physics"

Round = dict[str, float]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `main` reads."""
    parser.add_argument(
        "--task",
        nargs="+",
        metavar="NAME",
        default=[*USUAL_TASKS],
        help=f"tasks, or {ALL} (default: {' '.join(USUAL_TASKS)})",
    )
    parser.add_argument(
        "--backend",
        nargs="+",
        metavar="NAME",
        help=f"backends, or {ALL} (default: {' '.join(USUAL_BACKENDS)})",
    )
    sizes = ", ".join(f"{number} on {backend}" for backend, number in NUM_ENVS.items())
    parser.add_argument(
        "--num-envs", type=count, help=f"worlds (default: {sizes}; {NUM_ENVS_ON_CUDA} on a GPU)"
    )
    parser.add_argument("--seconds", type=count, default=3, help="env steps of a round (default: 3)")
    parser.add_argument("--rounds", type=count, default=3, help="rounds of a pair (default: 3)")
    add_output_arguments(parser)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--compiled", action="store_true", default=True, help="the task compiled, as in training (default)"
    )
    mode.add_argument("--eager", dest="compiled", action="store_false", help="the task as it is")


def main(arguments: argparse.Namespace) -> None:
    """Measure every pair in turn, print the table and write the result.

    Raises:
        UserError: no such task or backend, or its packages are not installed.
    """
    tasks = TASKS.names() if arguments.task == [ALL] else known_names(TASKS, arguments.task)
    chosen = BACKENDS.names() if arguments.backend == [ALL] else arguments.backend
    backends = known_names(BACKENDS, chosen or USUAL_BACKENDS)
    for backend in [] if arguments.backend == [ALL] else arguments.backend or []:
        if lack := lacking(backend):
            raise UserError(f"backend {backend}: needs {lack[0]}, not installed here; {lack[1]}")
    rows: dict[str, dict[str, Cell]] = {}
    metrics: dict[str, Metric] = {}
    pairs: dict[str, Any] = {}
    not_measured: dict[str, str] = {}
    for task in tasks:
        for backend in backends:
            name = f"{task} on {backend}"
            if reason := _reason(task, backend):
                rows[name] = {"note": reason}
                not_measured[name] = reason
                continue
            settings = _settings(arguments, task, backend)
            done = measure(name, settings)
            found = statistics(settings, done)
            metrics |= {f"{name}: {kind}": metric for kind, metric in found.items()}
            rows[name] = _row(settings, found, done)
            pairs[name] = {"settings": settings, "rounds": done}
    title = f"environment steps per second, {'compiled' if arguments.compiled else 'eager'}"
    print_table(rows, title=title, first_column="pair")
    settings = {
        "tasks": tasks,
        "num_envs": {backend: _num_envs(arguments, backend) for backend in backends},
        "devices": {backend: _device(backend) for backend in backends},
        "compiled": arguments.compiled,
    }
    write_outputs(make_result("sim", settings, metrics, pairs=pairs, not_measured=not_measured), arguments)


def measure(name: str, settings: dict[str, Any]) -> list[Round]:
    """The rounds of one pair, in a process of its own."""
    command = [sys.executable, "-m", "bench._sim_pair", json.dumps(settings)]
    process = subprocess.Popen(command, env=fresh_environment(), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    done: list[Round] = []
    try:
        for line in process.stdout:
            if not line.startswith("{"):
                continue  # what an engine says
            done.append(json.loads(line))
            share = statistics(settings, done)[NOT_PHYSICS]["rounds"][-1]
            number = f"round {len(done)} of {settings['rounds']}"
            print(f"{name}, {number}: {share:.1f} % is not physics", file=sys.stderr)
        if process.wait() or not done:
            raise RuntimeError(f"the process that measures {name} failed; its errors are above")
    finally:
        process.kill()
        process.wait()
    return done


def statistics(settings: dict[str, Any], rounds: list[Round]) -> dict[str, Metric]:
    """Every speed, and the share of an env step that is not physics; `mujoco.rollout` is not ours."""
    metrics = {
        kind: make_metric(
            [settings["num_envs"] * one["steps"] / one[kind] for one in rounds],
            "env steps/s",
            "" if kind == "rollout" else "higher",
        )
        for kind in ("physics", "env", "rollout")
        if kind in rounds[0]
    }
    share = [100.0 * (1.0 - one["physics"] / one["env"]) for one in rounds]
    return metrics | {NOT_PHYSICS: make_metric(share, "%", "")}


def _settings(arguments: argparse.Namespace, task: str, backend: str) -> dict[str, Any]:
    return {
        "task": task,
        "backend": backend,
        "num_envs": _num_envs(arguments, backend),
        "device": _device(backend),
        "compiled": arguments.compiled,
        "seconds": arguments.seconds,
        "rounds": arguments.rounds,
    }


def _num_envs(arguments: argparse.Namespace, backend: str) -> int:
    usual = NUM_ENVS_ON_CUDA if _device(backend) == "cuda" else NUM_ENVS.get(backend, 64)
    return int(arguments.num_envs or usual)


def _device(backend: str) -> str:
    import torch

    return "cuda" if backend != "mujoco" and torch.cuda.is_available() else "cpu"


def _reason(task: str, backend: str) -> str | None:
    """Why the pair cannot be measured; None where it can."""
    if lack := lacking(backend):
        return f"needs {lack[0]}: {lack[1]}"
    reason: str | None = TASKS.get(task).unsupported.get(backend)
    return f"unsupported: {reason}" if reason else None


def _row(settings: dict[str, Any], found: dict[str, Metric], rounds: list[Round]) -> dict[str, Cell]:
    share = found[NOT_PHYSICS]
    return {
        "worlds": settings["num_envs"],
        "physics": found["physics"]["median"],
        "env": found["env"]["median"],
        NOT_PHYSICS: f"{share['median']:.1f}% ({share['min']:.1f}% to {share['max']:.1f}%)",
        "rollout": found["rollout"]["median"] if "rollout" in found else None,
        "restarts/step": median(one["restarts"] for one in rounds),
        "note": settings["device"],
    }
