"""The table of `pi-bench train`, and what its rows stand for."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from bench._loops._peer import Settings
from bench._train_measure import Measurement
from bench._train_plan import OURS, PEERS, PHYSICS, Entry
from pi_incubator.evaluation.table import Cell, print_table, show


def print_measurements(measurements: list[Measurement]) -> None:
    """One row a learner, then a line on each."""
    rows = {name: row for measurement in measurements for name, row in _rows(measurement).items()}
    print_table(rows, title="environment steps per second, simulation and learning", first_column="settings")
    print("\n".join(_notes(measurements)))


def _rows(measurement: Measurement) -> dict[str, dict[str, Cell]]:
    name = measurement.comparison.name
    rows: dict[str, dict[str, Cell]] = {}
    for label in measurement.comparison.learners:
        speeds = measurement.speeds(label)
        row: dict[str, Cell] = {"steps/s": median(speeds), "min": min(speeds), "max": max(speeds)}
        if updates := measurement.update_speeds(label):
            row["updates/s"] = median(updates)
        if label in measurement.comparison.ours:
            row["of bare physics"] = f"{median(measurement.ratios(PHYSICS, ours=label)):.0%}"
        else:
            row["ours is times this"] = median(measurement.ratios(label))
            row["note"] = _remark(measurement.comparison.entries[label])
        rows[f"{name}: {label}"] = row
    left_out = measurement.comparison.left_out.items()
    return rows | {f"{name}: {peer}": {"note": f"left out: {reason}"} for peer, reason in left_out}


def _remark(entry: Entry) -> str:
    if entry.checkout:
        return entry.checkout
    return "" if PEERS[entry.loop].same_physics else "another physics model"


def _notes(measurements: list[Measurement]) -> Iterator[str]:
    for measurement in measurements:
        name, cfg, facts = measurement.comparison.name, measurement.comparison.cfg, measurement.facts
        for label, entry in measurement.comparison.entries.items():
            if entry.loop == OURS:
                yield f"{name}: {label}: {_describe(entry.settings)}"
            elif entry.loop in PEERS:
                yield f"{name}: {label}: {PEERS[entry.loop].describe(facts[label])}"
        yield from (f"  {reason}" for reason in facts[OURS]["compute"])
        if peers := measurement.comparable_peers():
            for ours in measurement.comparison.ours:
                best = show(median(measurement.ratios(*peers, ours=ours)))
                yield f"{name}: {ours} is {best} times the fastest peer of a round"
        speed = show(median(measurement.speeds(PHYSICS)))
        sizes = f"{cfg.env.num_envs} worlds, {facts[PHYSICS]['threads']} threads"
        yield f"{name}: bare physics: mujoco.rollout, {sizes}: {speed} steps/s"


def _describe(settings: Settings) -> str:
    """What our loop with these `settings` is, in a line."""
    algorithm = settings["algorithm"]
    size = f"{settings['env']['num_envs']} worlds x {algorithm['horizon']} steps"
    if "num_epochs" in algorithm:
        learning = f"{algorithm['num_epochs']} epochs, minibatches of {algorithm['minibatch_size']}"
    else:
        learning = f"{algorithm['updates_per_step']} updates a step, batches of {algorithm['batch_size']}"
    overlap = ", learning beside collection" if settings["training"]["overlap"] else ""
    return f"{size}, {learning}{overlap}"
