"""Metrics of the update and of the worlds go to the tracker."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pi_incubator.hooks.hook import Hook, Progress, is_due
from pi_incubator.tracking import Tracker
from pi_incubator.training.algorithm import Algorithm

COUNT = "episode/count"


class Logging(Hook):
    """Logs every `training.log_every` iterations: the only host sync of most iterations.

    Every rank calls it, and rank 0 logs the metrics of all.

    Args:
        algorithm: what is trained.
        tracker: takes the numbers.
        every: iterations between two logs.
    """

    def __init__(self, algorithm: Algorithm, tracker: Tracker, every: int) -> None:
        self._algorithm, self._tracker, self._every = algorithm, tracker, every

    def due(self, progress: Progress) -> bool:
        return is_due(progress, self._every)

    def __call__(self, progress: Progress) -> None:
        of_ranks = self._algorithm.distributed.gather(self._algorithm.pop_metrics())
        if of_ranks:
            metrics = to_numbers(progress.metrics) | merge_metrics(of_ranks)
            metrics["updates/skipped"] = float(self._algorithm.skipped.pop())
            self._tracker.log(progress.iteration, progress.env_steps, metrics)


def merge_metrics(of_ranks: Sequence[dict[str, float]]) -> dict[str, float]:
    """What the worlds of all ranks report: counts are summed, means of episodes weighted by their number."""
    if len(of_ranks) == 1:
        return of_ranks[0]
    counts = [metrics.get(COUNT, 0.0) for metrics in of_ranks]
    merged = {}
    for name in dict.fromkeys(name for metrics in of_ranks for name in metrics):
        is_episode = name.startswith("episode/")
        pairs = [
            (metrics[name], count if is_episode else 1.0)
            for metrics, count in zip(of_ranks, counts, strict=True)
            if name in metrics
        ]
        total = sum(weight for _, weight in pairs)
        if total:
            merged[name] = sum(value * weight for value, weight in pairs) / total
    return merged | ({COUNT: sum(counts)} if any(COUNT in metrics for metrics in of_ranks) else {})


def to_numbers(metrics: dict[str, Tensor]) -> dict[str, float]:
    """0-dim tensors -> floats, in one transfer."""
    if not metrics:
        return {}
    values = torch.stack([value.float() for value in metrics.values()]).tolist()
    return dict(zip(metrics, values, strict=True))
