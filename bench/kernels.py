"""Time of every kernel of `kernels/`, beside peers, plain torch and a copy of the same bytes.

On a CPU all candidates share one core, in a process of their own, and take turns; on a GPU the time is that
of the device. A candidate whose results are not ours, within the error of float32, is not timed. Bytes are
those of the tensors that go in and come out, each once.
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
from pi_incubator.cli._parser import count
from pi_incubator.errors import UserError
from pi_incubator.evaluation.table import Cell, print_table

OURS, COPY = "pi_incubator", "copy"
SHAPES = ("24x4096", "128x8192", "16x32768", "2048x8")
"""Steps x worlds: of locomotion on a GPU, long rollouts, short ones of many worlds, few worlds."""
# One core, and one thread of each library: XLA's client would wait for a second core (NPROC).
ONE_THREAD = {
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NPROC"), "1"),
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
}

Race = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `main` reads."""
    parser.add_argument("--kernel", nargs="+", metavar="NAME", help="default: all")
    parser.add_argument(
        "--shape",
        nargs="+",
        type=shape,
        default=[shape(text) for text in SHAPES],
        metavar="TxN",
        help=f"steps x worlds (default: {' '.join(SHAPES)})",
    )
    parser.add_argument("--peer", choices=("all", "none"), default="all", help="whom to run (default: all)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    parser.add_argument("--rounds", type=count, default=7, help="turns of each candidate (default: 7)")
    add_output_arguments(parser)


def shape(text: str) -> tuple[int, int]:
    """`TxN` -> (T, N), for `type=`."""
    steps, _, worlds = text.partition("x")
    try:
        return count(steps), count(worlds)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not steps x worlds, such as 24x4096") from None


def main(arguments: argparse.Namespace) -> None:
    """Measure kernel by kernel, print one table each and write the result.

    Raises:
        UserError: no such kernel, or no such device here.
    """
    names = _known(arguments.kernel)
    _check_device(arguments.device)
    races = [race(name, size, arguments) for name in names for size in arguments.shape]
    for name in names:
        of_kernel = [one for one in races if one["kernel"] == name]
        print_table(_rows(of_kernel), title=f"{name}, on {of_kernel[0]['device']}", first_column="T x N")
    settings = {"kernels": names, "shapes": arguments.shape, "device": arguments.device}
    result = make_result("kernels", settings, _metrics(races), races=races, not_measured=_left_out(races))
    write_outputs(result, arguments)


def race(kernel: str, size: tuple[int, int], arguments: argparse.Namespace) -> Race:
    """Let all candidates of one kernel take turns at one size, in a process of its own."""
    settings = {
        "kernel": kernel,
        "num_steps": size[0],
        "num_worlds": size[1],
        "device": arguments.device,
        "rounds": arguments.rounds,
        "peers": arguments.peer == "all",
    }
    threads = ONE_THREAD if arguments.device == "cpu" else {}
    command = [sys.executable, "-m", "bench._kernel_race", json.dumps(settings)]
    done = subprocess.run(command, env=fresh_environment(**threads), stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"the process that measures {kernel} failed; its errors are above")
    found: Race = settings | json.loads(done.stdout.splitlines()[-1])
    ours_s = median(found["seconds"][OURS])
    print(f"{kernel} {size[0]}x{size[1]}: {1e3 * ours_s:.3g} ms", file=sys.stderr)
    return found


def _known(asked: list[str] | None) -> list[str]:
    import kernels

    try:
        return [kernels.get(name).name for name in asked or kernels.names()]
    except ValueError as error:
        raise UserError(f"--kernel: {error}") from None


def _check_device(device: str) -> None:
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no CUDA device here; use --device cpu")


def _rows(races: list[Race]) -> dict[str, dict[str, Cell]]:
    """A row for each candidate of each size."""
    rows: dict[str, dict[str, Cell]] = {}
    for one in races:
        size = f"{one['num_steps']} x {one['num_worlds']}"
        seconds = {name: median(rounds) for name, rounds in one["seconds"].items()}
        for name, taken_s in seconds.items():
            rows[f"{size}: {name}"] = {
                "ms": 1e3 * taken_s,
                "ns/element": 1e9 * taken_s / one["elements"],
                "MB": one["bytes"] / 1e6,
                "times copy": taken_s / seconds[COPY],
                "ours is faster by": None if name in (OURS, COPY) else taken_s / seconds[OURS],
            }
        for name, reason in one["left_out"].items():
            rows[f"{size}: {name}"] = {"note": reason}
    return rows


def _name(one: Race, candidate: str) -> str:
    return f"{one['kernel']} {one['num_steps']}x{one['num_worlds']}: {candidate}"


def _left_out(races: list[Race]) -> dict[str, str]:
    return {_name(one, name): reason for one in races for name, reason in one["left_out"].items()}


def _metrics(races: list[Race]) -> dict[str, Metric]:
    metrics = {}
    for one in races:
        for name, rounds in one["seconds"].items():
            better = "lower" if name == OURS else ""
            metrics[_name(one, name)] = make_metric(
                [1e9 * taken_s / one["elements"] for taken_s in rounds], "ns/element", better
            )
    return metrics
