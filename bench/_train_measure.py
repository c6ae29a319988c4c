"""Loops taking turns, and the statistics of what they got done."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from bench._result import Metric, make_metric
from bench._train_plan import OURS, PEERS, PHYSICS, Comparison
from bench._worker import Budget, Slice, Worker
from pi_incubator.evaluation.table import show
from pi_incubator.provenance import flatten

Round = dict[str, Slice]  # by label


@dataclass(frozen=True)
class Measurement:
    """What the loops of a comparison got done."""

    comparison: Comparison
    facts: dict[str, dict[str, Any]]
    """Label -> what the loop says of itself."""
    rounds: list[Round]

    def speeds(self, label: str) -> list[float]:
        """Environment steps per second, one number a round."""
        return [turns[label].steps_per_s for turns in self.rounds]

    def ratios(self, *others: str, ours: str = OURS) -> list[float]:
        """Our speed over that of the fastest of `others`, one number a round."""
        fastest = [max(turns[label].steps_per_s for label in others) for turns in self.rounds]
        return [turns[ours].steps_per_s / speed for turns, speed in zip(self.rounds, fastest, strict=True)]

    def update_speeds(self, label: str) -> list[float]:
        """Optimizer steps per second, one number a round; empty where the loop does not count them."""
        if not any(turns[label].updates for turns in self.rounds):
            return []
        return [turns[label].updates_per_s for turns in self.rounds]

    def comparable_peers(self) -> list[str]:
        """The labels of the peers that simulate what we simulate."""
        entries = self.comparison.entries
        return [
            label for label, entry in entries.items() if entry.loop in PEERS and is_comparable(entry.loop)
        ]


def is_comparable(loop: str) -> bool:
    """Whether a peer's steps are steps of the model that we simulate."""
    return PEERS[loop].same_physics


def measure(comparison: Comparison, num_rounds: int, budget: Budget) -> Measurement:
    """Let the loops take turns, `num_rounds` each."""
    rounds: list[Round] = []
    workers: dict[str, Worker] = {}
    with ExitStack() as stack:
        for label, entry in comparison.entries.items():
            workers[label] = stack.enter_context(Worker(entry.loop, entry.settings, entry.checkout))
            ready = f"{comparison.name} settings: {label} is ready after {workers[label].ready_s:.0f} s"
            print(ready, file=sys.stderr)
        for number in range(1, num_rounds + 1):
            rounds.append({label: worker.run(budget) for label, worker in workers.items()})
            speeds = ", ".join(f"{label} {show(turn.steps_per_s)}" for label, turn in rounds[-1].items())
            print(
                f"{comparison.name} settings, round {number} of {num_rounds}: {speeds} steps/s",
                file=sys.stderr,
            )
    return Measurement(comparison, {label: worker.facts for label, worker in workers.items()}, rounds)


def metrics_of(measurement: Measurement) -> dict[str, Metric]:
    """Every speed, and our speeds over every other; theirs is told and not judged."""
    comparison, peers = measurement.comparison, measurement.comparable_peers()
    name, metrics = comparison.name, {}
    for label in comparison.entries:
        better = "higher" if label in comparison.ours else ""
        metrics[f"{name}: {label}"] = make_metric(measurement.speeds(label), "steps/s", better)
        if updates := measurement.update_speeds(label):
            metrics[f"{name}, updates: {label}"] = make_metric(updates, "updates/s", better)
    others = {label: [label] for label in comparison.entries if label not in comparison.ours}
    if peers:
        others["best peer"] = peers
    for ours in comparison.ours:
        for other, labels in others.items():
            ratios = measurement.ratios(*labels, ours=ours)
            metrics[f"{name}: {ours}/{other}"] = make_metric(ratios, "ratio")
    return metrics


def as_json(measurement: Measurement) -> dict[str, Any]:
    """Everything that was measured."""
    comparison = measurement.comparison
    return {
        "config": flatten(comparison.cfg),
        "peer_settings": {
            label: entry.settings for label, entry in comparison.entries.items() if entry.loop in PEERS
        },
        "left_out": comparison.left_out,
        "facts": measurement.facts,
        "rounds": [
            {
                label: turn._asdict() | {"steps_per_s": turn.steps_per_s, "updates_per_s": turn.updates_per_s}
                for label, turn in turns.items()
            }
            for turns in measurement.rounds
        ],
        "physics": PHYSICS,
    }
