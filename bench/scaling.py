"""How env steps per second grow with the number of worlds and with the number of processes.

Of `env.step` alone under random actions, and of training (simulation and learning together). Worlds: one
process with all its cores and 1, 2, 4, ... worlds; minibatches too large for a small batch become the largest
that divide both it and the config's. Processes: 1, 2, 4, ... independent ones at the same time, each with the
config's worlds and one physics thread, their speeds summed. Efficiency (/ linear) is the speed over that many
times the speed of one. Nothing is compiled unless compute.compile=on says so: every size would be built anew.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from math import gcd
from statistics import median
from typing import cast

from bench._machine import available_cores
from bench._output import add_output_arguments, write_outputs
from bench._result import Metric, make_metric, make_result
from bench._train_plan import load
from bench._worker import Budget, Worker
from pi_incubator.cli._parser import count, positive
from pi_incubator.config import ExperimentConfig
from pi_incubator.config.algorithms.ppo import PPOSettings
from pi_incubator.evaluation.table import Cell, print_table, show
from pi_incubator.provenance import flatten

LOOPS = {"env.step": "env_steps", "training": "pi_incubator"}
"""What is measured -> its file in `bench/_loops`."""
Speeds = dict[int, list[float]]
"""Env steps per second of every round, by number of worlds or processes."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `main` reads."""
    default = "configs/experiment_config_baseline.yaml"
    parser.add_argument("--config", default=default, help="experiment file (default: %(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that override it")
    parser.add_argument("--max-envs", type=count, default=256, help="most worlds (default: %(default)s)")
    cores = available_cores()
    parser.add_argument(
        "--max-processes", type=count, default=cores, help="most processes (default: the cores, %(default)s)"
    )
    parser.add_argument("--rounds", type=count, default=3, help="turns of each size (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=positive, default=0.5, help="least length of a turn (default: %(default)s)"
    )
    add_output_arguments(parser)


def main(arguments: argparse.Namespace) -> None:
    """Measure both ways to grow, print their tables and write the result.

    Raises:
        UserError: the config is wrong, or cannot run here.
    """
    cfg = load(arguments, "compute.compile=off")
    budget, rounds = Budget(seconds=arguments.seconds), arguments.rounds
    sizes = {"max_envs": arguments.max_envs, "max_processes": arguments.max_processes}
    result = make_result("scaling", {"config": flatten(cfg), **sizes}, {})  # the load before, not our own
    measured = {
        "worlds": over_worlds(cfg, doublings(arguments.max_envs), rounds, budget),
        "processes": over_processes(cfg, doublings(arguments.max_processes), rounds, budget),
    }
    metrics: dict[str, Metric] = {}
    for axis, speeds in measured.items():
        print_table(_rows(speeds), title=_title(cfg, axis), first_column=axis)
        metrics |= metrics_of(axis, speeds)
    write_outputs(result | {"metrics": metrics}, arguments)


def doublings(most: int) -> list[int]:
    """1, 2, 4, ... up to `most`, which is the last."""
    return sorted({2**power for power in range(most.bit_length())} | {most})


def over_worlds(
    cfg: ExperimentConfig, sizes: Iterable[int], rounds: int, budget: Budget
) -> dict[str, Speeds]:
    """The speeds of one process by its number of worlds; env.step and training take turns."""
    measured: dict[str, Speeds] = {name: {} for name in LOOPS}
    for num_envs in sizes:
        settings = with_worlds(cfg, num_envs).model_dump(mode="json")
        with ExitStack() as stack:
            workers = _start(stack, [(loop, settings) for loop in LOOPS.values()])
            named = dict(zip(LOOPS, workers, strict=True))
            for _ in range(rounds):
                for name, worker in named.items():
                    measured[name].setdefault(num_envs, []).append(worker.run(budget).steps_per_s)
        _tell("worlds", num_envs, measured)
    return measured


def over_processes(
    cfg: ExperimentConfig, sizes: Sequence[int], rounds: int, budget: Budget
) -> dict[str, Speeds]:
    """The summed speeds of processes that run at the same time, by their number."""
    one_thread = cfg.compute.model_copy(update={"physics_threads": cfg.compute.physics_threads or 1})
    settings = cfg.model_copy(update={"compute": one_thread}).model_dump(mode="json")
    measured: dict[str, Speeds] = {name: {size: [] for size in sizes} for name in LOOPS}
    for name, loop in LOOPS.items():
        with ExitStack() as stack:
            workers = _start(stack, [(loop, settings)] * max(sizes))
            for _ in range(rounds):
                for size in sizes:
                    measured[name][size].append(run_together(workers[:size], budget))
    for size in sizes:
        _tell("processes", size, measured)
    return measured


def run_together(workers: Sequence[Worker], budget: Budget) -> float:
    """Env steps per second of all `workers`, each running its turn at the same time as the others."""
    with ThreadPoolExecutor(len(workers)) as pool:
        return sum(turn.steps_per_s for turn in pool.map(lambda worker: worker.run(budget), workers))


def with_worlds(cfg: ExperimentConfig, num_envs: int) -> ExperimentConfig:
    """`cfg` with so many worlds, and minibatches that divide their batch."""
    batch_size = cfg.algorithm.steps_per_iteration(num_envs)
    minibatch_size = gcd(batch_size, cast(PPOSettings, cfg.algorithm).minibatch_size)
    total_steps = max(batch_size, cfg.training.total_steps)
    sections = cfg.model_dump(mode="json")
    sections["env"]["num_envs"] = num_envs
    sections["algorithm"]["minibatch_size"] = minibatch_size
    sections["training"]["total_steps"] = total_steps
    return ExperimentConfig.model_validate(sections)


def efficiency(speeds: Speeds) -> dict[int, list[float]]:
    """The speed of each size over that many times the speed of one, in the same round."""
    return {
        size: [speed / (size * one) for speed, one in zip(rounds, speeds[1], strict=True)]
        for size, rounds in speeds.items()
    }


def metrics_of(axis: str, measured: Mapping[str, Speeds]) -> dict[str, Metric]:
    """Every speed, which is judged, and its efficiency, which is told."""
    metrics = {}
    for name, speeds in measured.items():
        for size, rounds in speeds.items():
            metrics[f"{name}, {axis}: {size}"] = make_metric(rounds, "steps/s")
        for size, shares in efficiency(speeds).items():
            metrics[f"{name}, {axis}: {size}, efficiency"] = make_metric(shares, "ratio", better="")
    return metrics


def _start(stack: ExitStack, loops: Sequence[tuple[str, dict[str, object]]]) -> list[Worker]:
    """A ready worker for each loop and its settings; they start at the same time, and `stack` ends them."""
    with ThreadPoolExecutor(min(len(loops), available_cores())) as pool:
        starting = [pool.submit(Worker, loop, settings) for loop, settings in loops]
    for started in starting:
        if not started.exception():
            stack.push(started.result())
    return [started.result() for started in starting]


def _tell(axis: str, size: int, measured: Mapping[str, Speeds]) -> None:
    speeds = ", ".join(f"{name} {show(median(by_size[size]))}" for name, by_size in measured.items())
    print(f"{axis} {size}: {speeds} steps/s", file=sys.stderr)


def _title(cfg: ExperimentConfig, axis: str) -> str:
    unit = f"{cfg.env.name}: env steps per second"
    if axis == "worlds":
        return f"{unit}, one process"
    threads = cfg.compute.physics_threads or 1
    return f"{unit}, each process with {cfg.env.num_envs} worlds; physics threads: {threads}"


def _rows(measured: Mapping[str, Speeds]) -> dict[str, dict[str, Cell]]:
    rows: dict[str, dict[str, Cell]] = {}
    for name, speeds in measured.items():
        shares = efficiency(speeds)
        for size, rounds in speeds.items():
            row = rows.setdefault(str(size), {})
            row[name] = median(rounds)
            row[f"{name} / linear"] = f"{median(shares[size]):.0%}"
    return rows
