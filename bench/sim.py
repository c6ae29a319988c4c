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

from bench._machine import describe, fresh_environment
from envs_gpu.physics import BACKENDS
from envs_gpu.tasks import TASKS
from pi_incubator.cli._parser import count, known_names, output_file
from pi_incubator.config.check import lacking
from pi_incubator.errors import UserError
from pi_incubator.evaluation.table import Cell, print_table, write_json

NUM_ENVS = {"mujoco": 256, "warp": 1024, "newton": 1024, "mjx": 64}
"""On a CPU; mjx is 50 times slower than C there."""
NUM_ENVS_ON_CUDA = 4096

Round = dict[str, float]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `main` reads."""
    parser.add_argument("--task", nargs="+", metavar="NAME", help="tasks (default: all)")
    parser.add_argument("--backend", nargs="+", metavar="NAME", help="default: all that are installed")
    sizes = ", ".join(f"{number} on {backend}" for backend, number in NUM_ENVS.items())
    parser.add_argument(
        "--num-envs", type=count, help=f"worlds (default: {sizes}; {NUM_ENVS_ON_CUDA} on a GPU)"
    )
    parser.add_argument("--seconds", type=count, default=5, help="env steps of a round (default: 5)")
    parser.add_argument("--rounds", type=count, default=5, help="rounds of a pair (default: 5)")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="also write everything there")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--compiled", action="store_true", default=True, help="the task compiled, as in training (default)"
    )
    mode.add_argument("--eager", dest="compiled", action="store_false", help="the task as it is")


def main(arguments: argparse.Namespace) -> None:
    """Measure every pair in turn, print the table and write the JSON.

    Raises:
        UserError: no such task or backend, or its packages are not installed.
    """
    tasks = known_names(TASKS, arguments.task or TASKS.names())
    backends = known_names(BACKENDS, arguments.backend or BACKENDS.names())
    for backend in arguments.backend or []:
        if lack := lacking(backend):
            raise UserError(f"backend {backend}: needs {lack[0]}, not installed here; {lack[1]}")
    report = describe()
    rows: dict[str, dict[str, Cell]] = {}
    measured: dict[str, Any] = {}
    for task in tasks:
        for backend in backends:
            name = f"{task} on {backend}"
            if reason := _reason(task, backend):
                rows[name] = {"note": reason}
                measured[name] = {"reason": reason}
                continue
            settings = _settings(arguments, task, backend)
            done = measure(name, settings)
            rows[name] = _row(settings, done)
            measured[name] = {"settings": settings, "rounds": done, **statistics(settings, done)}
    title = f"environment steps per second, {'compiled' if arguments.compiled else 'eager'}"
    print_table(rows, title=title, first_column="pair")
    if arguments.json:
        write_json(report | {"pairs": measured}, arguments.json)


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
            share = statistics(settings, done)["not_physics"]["rounds"][-1]
            number = f"round {len(done)} of {settings['rounds']}"
            print(f"{name}, {number}: {share:.1%} is not physics", file=sys.stderr)
        if process.wait() or not done:
            raise RuntimeError(f"the process that measures {name} failed; its errors are above")
    finally:
        process.kill()
        process.wait()
    return done


def statistics(settings: dict[str, Any], rounds: list[Round]) -> dict[str, dict[str, Any]]:
    """Median and spread over the rounds of every speed, in env steps per second, and of the share."""
    kinds = [kind for kind in ("physics", "env", "rollout") if kind in rounds[0]]
    columns = {
        f"{kind}_steps_per_s": [settings["num_envs"] * one["steps"] / one[kind] for one in rounds]
        for kind in kinds
    }
    columns["not_physics"] = [1.0 - one["physics"] / one["env"] for one in rounds]
    return {
        name: {"median": median(values), "min": min(values), "max": max(values), "rounds": values}
        for name, values in columns.items()
    }


def _settings(arguments: argparse.Namespace, task: str, backend: str) -> dict[str, Any]:
    device = _device(backend)
    usual = NUM_ENVS_ON_CUDA if device == "cuda" else NUM_ENVS.get(backend, 64)
    return {
        "task": task,
        "backend": backend,
        "num_envs": arguments.num_envs or usual,
        "device": device,
        "compiled": arguments.compiled,
        "seconds": arguments.seconds,
        "rounds": arguments.rounds,
    }


def _device(backend: str) -> str:
    import torch

    return "cuda" if backend != "mujoco" and torch.cuda.is_available() else "cpu"


def _reason(task: str, backend: str) -> str | None:
    """Why the pair cannot be measured; None where it can."""
    if lack := lacking(backend):
        return f"needs {lack[0]}: {lack[1]}"
    reason: str | None = TASKS.get(task).unsupported.get(backend)
    return f"unsupported: {reason}" if reason else None


def _row(settings: dict[str, Any], rounds: list[Round]) -> dict[str, Cell]:
    found = statistics(settings, rounds)
    share = found["not_physics"]
    return {
        "worlds": settings["num_envs"],
        "physics": found["physics_steps_per_s"]["median"],
        "env": found["env_steps_per_s"]["median"],
        "not physics": f"{share['median']:.1%} ({share['min']:.1%} to {share['max']:.1%})",
        "rollout": found["rollout_steps_per_s"]["median"] if "rollout_steps_per_s" in found else None,
        "restarts/step": median(one["restarts"] for one in rounds),
        "note": settings["device"],
    }
