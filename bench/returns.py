"""Returns over the seeds of trainings: each seed, the interquartile mean and its 95 % interval, curves.

A training is `NAME=FOLDER`, where FOLDER holds one folder for each seed with a run's metrics.jsonl and
evaluation.json, such as bench/results/sac_half_cheetah. The interquartile mean drops the lowest and the
highest quarter (of three seeds nothing), and the interval is a bootstrap over the seeds, as of rliable
(Agarwal et al. 2021, arXiv 2108.13264); both are SciPy's.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap, trim_mean

from bench._output import add_output_arguments, write_outputs
from bench._result import Curve, Metric, make_curve, make_metric, make_result
from pi_incubator.cli._parser import count
from pi_incubator.errors import UserError
from pi_incubator.evaluation.table import print_table
from pi_incubator.tracking import read_metrics

RETURN = "evaluation/return"
NUM_RESAMPLES = 2000


class Seed(NamedTuple):
    """One run: returns of its deterministic policy."""

    name: str
    env_steps: list[int]
    returns: list[float]

    def at(self, env_steps: int) -> float | None:
        """The return after so many environment steps; None where it was not judged there."""
        return dict(zip(self.env_steps, self.returns, strict=True)).get(env_steps)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `main` reads."""
    trainings_help = "folders with one run for each seed"
    parser.add_argument("trainings", nargs="+", metavar="NAME=FOLDER", help=trainings_help)
    at_help = "environment steps to compare at (default: the last at which all seeds were judged)"
    parser.add_argument("--at", nargs="+", type=count, default=[], metavar="STEPS", help=at_help)
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write every return of every seed")
    add_output_arguments(parser)


def main(arguments: argparse.Namespace) -> None:
    """Print the table and write the files.

    Raises:
        UserError: a folder holds no run, or a run was not judged at the steps asked for.
    """
    trainings = dict(_training(text) for text in arguments.trainings)
    if arguments.csv:
        _write_csv(trainings, arguments.csv)
    metrics, rows = {}, {}
    for name, seeds in trainings.items():
        for steps in arguments.at or [_last_common(name, seeds)]:
            returns = [_return_at(name, seed, steps) for seed in seeds]
            low, middle, high = interquartile_mean(returns)
            label = f"{name}: {steps:,} steps"
            metrics[label] = _metric(returns, low, middle, high)
            of_seeds = dict(zip([seed.name for seed in seeds], returns, strict=True))
            rows[label] = {"IQM": middle, "low": low, "high": high} | of_seeds
    print_table(rows, title=f"return of the deterministic policy ({NUM_RESAMPLES} resamples)")
    curves = {name: _curve(seeds) for name, seeds in trainings.items()}
    settings = {"trainings": sorted(trainings), "at": arguments.at}
    write_outputs(make_result("returns", settings, metrics, curves=curves), arguments)


def interquartile_mean(returns: Sequence[float]) -> tuple[float, float, float]:
    """The lower end of the 95 % interval, the interquartile mean, and the upper end; equal for one seed."""
    middle = _trimmed(np.asarray(returns))
    if len(returns) < 2:
        return middle, middle, middle
    resampled = bootstrap(
        (returns,), _trimmed, n_resamples=NUM_RESAMPLES, method="percentile", rng=np.random.default_rng(0)
    )
    return resampled.confidence_interval.low, middle, resampled.confidence_interval.high


def _trimmed(returns: NDArray[np.float64], axis: int = -1) -> Any:
    return trim_mean(returns, 0.25, axis=axis)


def _training(text: str) -> tuple[str, list[Seed]]:
    name, _, folder = text.partition("=")
    fix = "name a folder that holds one run for each seed, as NAME=FOLDER"
    if not folder:
        raise UserError(f"{text}: has no '='; {fix}")
    files = sorted(Path(folder).glob("*/metrics.jsonl"))
    if not files:
        raise UserError(f"{folder}: no */metrics.jsonl there; {fix}")
    return name, [_read_seed(file) for file in files]


def _read_seed(file: Path) -> Seed:
    rows = read_metrics(file)
    judged = {int(row["env_steps"]): row[RETURN] for row in rows if RETURN in row}
    final = file.with_name("evaluation.json")
    if rows and final.is_file():  # after the last iteration
        judged[int(rows[-1]["env_steps"])] = float(json.loads(final.read_text())["return"]["mean"])
    if not judged:
        raise UserError(f"{file}: holds no {RETURN}; train with evaluation.every set")
    if diverged := [steps for steps, value in judged.items() if value is None]:
        raise UserError(f"{file}: {RETURN} was not finite after {diverged[0]} steps; leave this run out")
    return Seed(file.parent.name, list(judged), list(judged.values()))


def _last_common(name: str, seeds: Sequence[Seed]) -> int:
    common = set.intersection(*(set(seed.env_steps) for seed in seeds))
    if not common:
        raise UserError(f"{name}: its seeds were never judged after equally many steps; train them alike")
    return max(common)


def _return_at(name: str, seed: Seed, steps: int) -> float:
    found = seed.at(steps)
    if found is None:
        judged = ", ".join(f"{number}" for number in seed.env_steps)
        raise UserError(f"{name}: {seed.name} was not judged after {steps} steps; --at takes one of {judged}")
    return found


def _metric(returns: Sequence[float], low: float, middle: float, high: float) -> Metric:
    interval = {"interquartile_mean": middle, "interval_95": [low, high]}
    return make_metric(returns, "return") | interval


def _curve(seeds: Sequence[Seed]) -> Curve:
    lines = {seed.name: (seed.env_steps, seed.returns) for seed in seeds}
    common = sorted(set.intersection(*(set(seed.env_steps) for seed in seeds)))
    middle = [float(_trimmed(np.array([seed.at(steps) for seed in seeds]))) for steps in common]
    return make_curve("environment steps", "return", lines | {"interquartile mean": (common, middle)})


def _write_csv(trainings: dict[str, list[Seed]], file: Path) -> None:
    try:
        with file.open("w", newline="", encoding="utf-8") as out:
            writer = csv.writer(out)
            writer.writerow(["training", "seed", "env_steps", "return"])
            for name, seeds in trainings.items():
                for seed in seeds:
                    judged = zip(seed.env_steps, seed.returns, strict=True)
                    writer.writerows([name, seed.name, *pair] for pair in judged)
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror}); name another file") from None
