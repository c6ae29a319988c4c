"""Environment steps per second of training on 1, 2, ... ranks, each with one core to itself.

The same config on every rank, so more ranks train with more worlds. Ranks take turns, so that a busy machine
slows all of them down alike; the ratio to one rank is what they gain.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from typing import Any

from bench._machine import fresh_environment
from bench._output import add_output_arguments, write_outputs
from bench._result import Metric, make_metric, make_result
from bench._train_plan import load
from pi_incubator.cli._parser import count
from pi_incubator.config import ExperimentConfig
from pi_incubator.errors import UserError
from pi_incubator.evaluation.table import print_table, show
from pi_incubator.provenance import flatten


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `main` reads."""
    parser.add_argument("--config", default="configs/experiment_config_baseline.yaml", help="experiment file")
    parser.add_argument("--ranks", type=count, nargs="+", default=[1, 2], help="numbers of ranks")
    parser.add_argument("--iterations", type=count, default=10, help="timed in each turn (default: 10)")
    parser.add_argument("--rounds", type=count, default=3, help="turns of each number (default: 3)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that override it")
    add_output_arguments(parser)


def main(arguments: argparse.Namespace) -> None:
    """Measure, print the table and write the result.

    Raises:
        UserError: a mistake in the config, or fewer cores than ranks.
    """
    cfg, cores = load(arguments), sorted(os.sched_getaffinity(0))
    numbers = sorted({1, *arguments.ranks})
    if numbers[-1] > len(cores):
        raise UserError(f"--ranks {numbers[-1]}: this machine has {len(cores)} cores for them; name fewer")
    speeds: dict[int, list[float]] = {number: [] for number in numbers}
    for turn in range(1, arguments.rounds + 1):
        for number in numbers:
            speeds[number].append(_steps_per_s(cfg, cores[:number], arguments.iterations))
        shown = ", ".join(f"{number}: {show(speeds[number][-1])}" for number in numbers)
        print(f"round {turn} of {arguments.rounds}, steps/s by ranks: {shown}", file=sys.stderr)
    metrics = _metrics(speeds)
    rows = {name: {key: metric[key] for key in ("median", "min", "max")} for name, metric in metrics.items()}
    print_table(rows, title=f"{cfg.algorithm.name} on {cfg.env.name}, a core for each rank")
    settings = {"config": flatten(cfg), "ranks": numbers, "iterations": arguments.iterations}
    write_outputs(make_result("ranks", settings, metrics), arguments)


def _metrics(speeds: dict[int, list[float]]) -> dict[str, Metric]:
    metrics = {f"ranks: {number}": make_metric(found, "steps/s") for number, found in speeds.items()}
    for number, found in speeds.items():
        if number > 1:
            ratios = [many / one for many, one in zip(found, speeds[1], strict=True)]
            metrics[f"ranks: {number}/1"] = make_metric(ratios, "ratio")
    return metrics


def _steps_per_s(cfg: ExperimentConfig, cores: list[int], num_iterations: int) -> float:
    """Over all ranks, one on each of `cores`, in processes of their own."""
    ranks = f"--nproc-per-node={len(cores)}"
    settings: dict[str, Any] = cfg.model_dump(mode="json")
    worker = ["-m", "bench._rank_steps", json.dumps(settings), str(num_iterations)]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", ranks, *worker],
        env=fresh_environment() | {"OMP_NUM_THREADS": "1"},  # torchrun sets it too, with a warning
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    if done.returncode:
        raise RuntimeError("the processes of the ranks failed; their errors are above")
    answer = json.loads(done.stdout.splitlines()[-1])
    return float(answer["env_steps"] / answer["wall_s"])
