"""Environment steps per second, simulation and learning together, beside a peer and bare physics.

The loops take turns in one run, each in a process of its own that sleeps between its turns; building and
compiling are not measured. Ratios are paired: each compares two turns of the same round.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from typing import Any

from bench._loops import sb3
from bench._machine import describe
from bench._worker import Budget, Slice, Worker
from pi_incubator.cli._parser import count, output_file
from pi_incubator.config import ExperimentConfig, check_names, load_with_sources
from pi_incubator.evaluation.table import Cell, print_table, show, write_json
from pi_incubator.provenance import flatten

OURS, PHYSICS = "pi_incubator", "physics"
PEERS = ("sb3", "none")
# Settings that both sides can have; Stable-Baselines3's PPO does not normalize observations by itself.
IDENTICAL = (
    "env.num_envs=8",
    "algorithm.horizon=256",
    "algorithm.num_epochs=10",
    "algorithm.minibatch_size=512",
    "algorithm.lr_schedule=constant",
    "algorithm.max_grad_norm=0.5",
    "network.hidden_sizes=[64, 64]",
    "network.activation=tanh",
    "network.normalize_observations=false",
)

Round = dict[str, Slice]  # by loop


@dataclass(frozen=True)
class Comparison:
    """Loops that are measured together."""

    name: str
    cfg: ExperimentConfig
    """Of our loop."""
    loops: dict[str, dict[str, Any]]
    """Loop -> its settings, in the order of their turns; ours is first."""


@dataclass(frozen=True)
class Measurement:
    """What the loops of a comparison got done."""

    comparison: Comparison
    facts: dict[str, dict[str, Any]]
    """Loop -> what it says of itself."""
    rounds: list[Round]

    def speeds(self, loop: str) -> list[float]:
        """Environment steps per second, one number a round."""
        return [turns[loop].steps_per_s for turns in self.rounds]

    def ratios(self, other: str) -> list[float]:
        """Our speed over that of `other`, one number a round."""
        return [turns[OURS].steps_per_s / turns[other].steps_per_s for turns in self.rounds]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `main` reads."""
    default = "configs/experiment_config_baseline.yaml"
    parser.add_argument("--config", default=default, help="experiment file (default: %(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that override it")
    parser.add_argument("--peer", default="sb3", choices=PEERS, help="whom to compare with (default: sb3)")
    parser.add_argument("--identical", action="store_true", help="only the comparison with the same settings")
    parser.add_argument(
        "--sb3-vec", default="dummy", choices=sb3.VEC_ENVS, help="SB3's envs where it has many"
    )
    parser.add_argument("--rounds", type=count, default=3, help="turns of each loop (default: 3)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--seconds", type=count, default=20, help="length of a turn (default: 20)")
    length.add_argument("--iterations", type=count, help="length of a turn, in iterations of its loop")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="also write everything there")


def main(arguments: argparse.Namespace) -> None:
    """Measure, print the table and write the JSON.

    Raises:
        UserError: the config or the peer cannot be measured here.
    """
    comparisons = _comparisons(arguments)
    report = describe()
    budget = Budget(iterations=arguments.iterations) if arguments.iterations else Budget(arguments.seconds)
    measurements = [measure(comparison, arguments.rounds, budget) for comparison in comparisons]
    rows = {name: row for measurement in measurements for name, row in _rows(measurement).items()}
    print_table(rows, title="environment steps per second, simulation and learning", first_column="settings")
    print("\n".join(_notes(measurements)))
    if arguments.json:
        write_json(
            report | {"comparisons": {m.comparison.name: _as_json(m) for m in measurements}}, arguments.json
        )


def measure(comparison: Comparison, num_rounds: int, budget: Budget) -> Measurement:
    """Let the loops take turns, `num_rounds` each."""
    rounds: list[Round] = []
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(Worker(name, settings)) for name, settings in comparison.loops.items()
        }
        for number in range(1, num_rounds + 1):
            rounds.append({name: worker.run(budget) for name, worker in workers.items()})
            speeds = ", ".join(f"{name} {show(turn.steps_per_s)}" for name, turn in rounds[-1].items())
            print(
                f"{comparison.name} settings, round {number} of {num_rounds}: {speeds} steps/s",
                file=sys.stderr,
            )
    return Measurement(comparison, {name: worker.facts for name, worker in workers.items()}, rounds)


def _comparisons(arguments: argparse.Namespace) -> list[Comparison]:
    """What the command line asks for; everything is checked before anything is started."""
    comparisons = []
    if not arguments.identical:
        comparisons.append(_comparison("own", arguments, arguments.overrides))
    if arguments.identical or arguments.peer != "none":
        comparisons.append(_comparison("identical", arguments, [*IDENTICAL, *arguments.overrides]))
    return comparisons


def _comparison(name: str, arguments: argparse.Namespace, overrides: list[str]) -> Comparison:
    cfg, sources = load_with_sources(arguments.config, overrides)
    check_names(cfg, sources)
    settings = cfg.model_dump(mode="json")
    loops = {OURS: settings}
    if arguments.peer == "sb3":
        sb3.check(cfg)
        same = name == "identical"
        loops["sb3"] = sb3.same_settings(cfg, arguments.sb3_vec) if same else sb3.default_settings(cfg)
    return Comparison(name, cfg, loops | {PHYSICS: settings})


def _rows(measurement: Measurement) -> dict[str, dict[str, Cell]]:
    """One row for each loop that learns."""
    rows: dict[str, dict[str, Cell]] = {}
    learners = [loop for loop in measurement.comparison.loops if loop != PHYSICS]
    for loop in learners:
        speeds = measurement.speeds(loop)
        row: dict[str, Cell] = {"steps/s": median(speeds), "min": min(speeds), "max": max(speeds)}
        rows[f"{measurement.comparison.name}: {loop}"] = row
        if loop == OURS:
            row |= {f"times {peer}": median(measurement.ratios(peer)) for peer in learners[1:]}
            row["of bare physics"] = f"{median(measurement.ratios(PHYSICS)):.0%}"
    return rows


def _notes(measurements: list[Measurement]) -> Iterator[str]:
    """What the table's rows stand for, one line each."""
    for measurement in measurements:
        name, cfg, facts = measurement.comparison.name, measurement.comparison.cfg, measurement.facts
        learning = f"{cfg.algorithm.num_epochs} epochs, minibatches of {cfg.algorithm.minibatch_size}"
        yield f"{name}: {OURS}: {cfg.env.num_envs} worlds x {cfg.algorithm.horizon} steps, {learning}"
        yield from (f"  {reason}" for reason in facts[OURS]["compute"])
        if "sb3" in facts:
            yield f"{name}: {sb3.describe(facts['sb3'])}"
        speed = show(median(measurement.speeds(PHYSICS)))
        sizes = f"{cfg.env.num_envs} worlds, {facts[PHYSICS]['threads']} threads"
        yield f"{name}: bare physics: mujoco.rollout, {sizes}: {speed} steps/s"


def _as_json(measurement: Measurement) -> dict[str, Any]:
    """Everything that was measured, and the statistics of the table."""
    loops = measurement.comparison.loops
    return {
        "config": flatten(measurement.comparison.cfg),
        "peer_settings": {name: loops[name] for name in loops if name in PEERS},
        "facts": measurement.facts,
        "rounds": [
            {name: turn._asdict() | {"steps_per_s": turn.steps_per_s} for name, turn in turns.items()}
            for turns in measurement.rounds
        ],
        "steps_per_s": {name: _statistics(measurement.speeds(name)) for name in loops},
        "ratios": {
            f"{OURS}/{other}": _statistics(measurement.ratios(other)) for other in loops if other != OURS
        },
    }


def _statistics(values: list[float]) -> dict[str, Any]:
    return {"median": median(values), "min": min(values), "max": max(values), "rounds": values}
