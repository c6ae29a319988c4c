"""Seconds from the start of a process to its first environment step, without and with compilation caches.

Cold: every compilation cache is an empty folder. Warm: a second process, with the caches that the first one
left. Python's bytecode and the operating system's file cache are warm in both.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from statistics import median
from typing import Any

from pydantic import ValidationError

from bench._machine import fresh_environment
from bench._output import add_output_arguments, write_outputs
from bench._result import Metric, make_metric, make_result
from envs_gpu.physics import BACKENDS
from pi_incubator.cli._parser import count
from pi_incubator.config import ConfigError, ExperimentConfig, check_names
from pi_incubator.config.errors import from_validation
from pi_incubator.evaluation.table import Cell, print_table

CACHES = (
    *("WARP_CACHE_PATH", "JAX_COMPILATION_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"),
    *("TRITON_CACHE_DIR", "CUDA_CACHE_PATH"),
)
SOURCES = {"env.name": "--task", "env.backend": "--backend"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `main` reads."""
    parser.add_argument("--task", default="ant", help="task to step (default: ant)")
    parser.add_argument("--backend", nargs="+", help="physics backends (default: all that are installed)")
    parser.add_argument("--num-envs", type=count, default=64, help="worlds (default: 64)")
    parser.add_argument(
        "--compiled", action="store_true", help="torch.compile the task too, as training does"
    )
    parser.add_argument("--rounds", type=count, default=1, help="cold and warm pairs a backend (default: 1)")
    add_output_arguments(parser)


def main(arguments: argparse.Namespace) -> None:
    """Measure every backend in turn, print the table and write the result.

    Raises:
        UserError: no such task or backend, or its packages are not installed.
    """
    backends = _backends(arguments)
    settings = {"task": arguments.task, "num_envs": arguments.num_envs, "compiled": arguments.compiled}
    measured = {
        backend: [measure(settings | {"backend": backend}) for _ in range(arguments.rounds)]
        for backend in backends
    }
    title = f"startup of {arguments.num_envs} worlds of {arguments.task}"
    print_table(
        {backend: _row(rounds) for backend, rounds in measured.items()}, title=title, first_column="backend"
    )
    if "mjx" in backends:
        print(
            "mjx, warm: with JAX_COMPILATION_CACHE_DIR set; unset, JAX keeps nothing and every start is cold"
        )
    metrics = {name: metric for key, rounds in measured.items() for name, metric in _metrics(key, rounds)}
    result = make_result("startup", settings | {"backends": backends}, metrics, rounds=measured)
    write_outputs(result, arguments)


def measure(settings: dict[str, Any]) -> dict[str, Any]:
    """A cold process and a warm one after it; seconds are counted from the start of each."""
    with tempfile.TemporaryDirectory() as folder:
        caches = {name: os.path.join(folder, name.lower()) for name in CACHES}
        return {name: _start(settings, caches) for name in ("cold", "warm")}


def _start(settings: dict[str, Any], caches: dict[str, str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench._first_steps", json.dumps(settings)]
    environment = fresh_environment(**caches)
    began_s = time.monotonic()
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"the process that starts {settings['backend']} failed; its errors are above")
    answer = json.loads(done.stdout.splitlines()[-1])
    ended_s = answer["ended_s"]
    return {
        **{f"{stage}_s": at_s - began_s for stage, at_s in ended_s.items()},
        "second_step_alone_s": ended_s["second_step"] - ended_s["first_step"],
        "recompilations": answer["recompilations"],
        "device": answer["device"],
    }


def _backends(arguments: argparse.Namespace) -> list[str]:
    """The backends that were asked for; without a wish, those that can run."""
    if arguments.backend:
        for backend in arguments.backend:
            _check(arguments.task, backend)
        return list(dict.fromkeys(arguments.backend))
    _check(arguments.task, "auto")
    return [backend for backend in BACKENDS.names() if _is_installed(arguments.task, backend)]


def _check(task: str, backend: str) -> None:
    """Raises a ConfigError where `task` cannot run on `backend` here."""
    try:
        cfg = ExperimentConfig.model_validate({"env": {"name": task, "backend": backend}})
    except ValidationError as error:
        raise from_validation(error, SOURCES, file="command line") from None
    check_names(cfg, SOURCES)


def _is_installed(task: str, backend: str) -> bool:
    try:
        _check(task, backend)
    except ConfigError:
        return False
    return True


def _metrics(backend: str, rounds: list[dict[str, Any]]) -> Iterator[tuple[str, Metric]]:
    for process in ("cold", "warm"):
        seconds = [one[process]["first_step_s"] for one in rounds]
        yield f"{backend}: to the first step, {process}", make_metric(seconds, "s", "lower")
    imports = [one["warm"]["imported_s"] for one in rounds]
    yield f"{backend}: of it imports, warm", make_metric(imports, "s", "")
    second = [1e3 * one["warm"]["second_step_alone_s"] for one in rounds]
    yield f"{backend}: second step", make_metric(second, "ms", "")


def _row(rounds: list[dict[str, Any]]) -> dict[str, Cell]:
    def middle(process: str, key: str) -> float:
        return median(one[process][key] for one in rounds)

    row: dict[str, Cell] = {
        "cold s": middle("cold", "first_step_s"),
        "warm s": middle("warm", "first_step_s"),
        "of it imports s": middle("warm", "imported_s"),
        "2nd step ms": 1e3 * middle("warm", "second_step_alone_s"),
        "device": rounds[0]["cold"]["device"],
    }
    recompilations = [one[process]["recompilations"] for one in rounds for process in one]
    return row | ({"recompiled": max(recompilations)} if None not in recompilations else {})
