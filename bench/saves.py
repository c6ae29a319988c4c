"""What checkpoints cost: how long training waits for one, and how much longer an iteration takes with them.

Stretches of `checkpoint.save_every` iterations take turns in one process: in every other one, the first
iteration is followed by a checkpoint, which is written beside the others. Both kinds wait until everything
is written, so nothing is left out.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time

from bench._loops.pi_incubator import OurLoop
from bench._output import add_output_arguments, write_outputs
from bench._result import Metric, make_metric, make_result
from bench._train_plan import load
from pi_incubator.checkpoint import BackgroundSaver
from pi_incubator.cli._parser import count
from pi_incubator.config import ExperimentConfig
from pi_incubator.evaluation.table import print_table, show
from pi_incubator.provenance import flatten
from pi_incubator.run_folder import RunFolder

KINDS = {True: "with a checkpoint", False: "without"}
"""Of a stretch of iterations: whether a checkpoint is saved -> how the progress names it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `main` reads."""
    parser.add_argument("--config", default="configs/experiment_config_baseline.yaml", help="experiment file")
    parser.add_argument("--rounds", type=count, default=10, help="stretches of each kind (default: 10)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that override it")
    add_output_arguments(parser)


def main(arguments: argparse.Namespace) -> None:
    """Measure, print the table and write the result.

    Raises:
        UserError: a mistake in the config.
    """
    cfg = load(arguments)
    with tempfile.TemporaryDirectory() as place:
        experiment = cfg.experiment.model_copy(update={"output_dir": place})
        metrics = _measure(cfg.model_copy(update={"experiment": experiment}), arguments.rounds)
    rows = {name: {key: metric[key] for key in ("median", "min", "max")} for name, metric in metrics.items()}
    print_table(rows, title=f"checkpoints of {cfg.algorithm.name} on {cfg.env.name}")
    settings = {"config": flatten(cfg), "rounds": arguments.rounds}
    write_outputs(make_result("saves", settings, metrics), arguments)


def _measure(cfg: ExperimentConfig, num_rounds: int) -> dict[str, Metric]:
    loop = OurLoop(cfg)
    saver = BackgroundSaver(RunFolder(cfg), loop.algorithm.parts(), cfg)
    loop.warm_up()
    walls_s: dict[bool, list[float]] = {True: [], False: []}
    stalls_s: list[float] = []
    for turn in range(1, num_rounds + 1):
        # The kind that comes first changes, so that a machine that gets slower or faster harms neither.
        for saves in (True, False) if turn % 2 else (False, True):
            began_s = time.perf_counter()
            loop.iterate()
            if saves:
                stalls_s.append(_save(saver, loop))
            for _ in range(cfg.checkpoint.save_every - 1):
                loop.iterate()
            saver.wait()
            loop.synchronize()
            walls_s[saves].append(time.perf_counter() - began_s)
        told = ", ".join(f"{show(walls_s[saves][-1])} s {kind}" for saves, kind in KINDS.items())
        print(
            f"round {turn} of {num_rounds}: {cfg.checkpoint.save_every} iterations, {told}", file=sys.stderr
        )
    saver.close()
    loop.algorithm.close()
    costs = [
        100 * (with_s / without_s - 1)
        for with_s, without_s in zip(walls_s[True], walls_s[False], strict=True)
    ]
    return {
        "saves: stall": make_metric([1000 * stall_s for stall_s in stalls_s], "ms", "lower"),
        "saves: cost": make_metric(costs, "%", "lower"),
    }


def _save(saver: BackgroundSaver, loop: OurLoop) -> float:
    """Seconds until training can go on."""
    loop.synchronize()
    began_s = time.perf_counter()
    saver.save(loop.algorithm.iteration, loop.algorithm.env_steps)
    return time.perf_counter() - began_s
