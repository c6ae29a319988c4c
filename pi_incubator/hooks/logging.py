"""Metrics of the update and of the worlds go to the tracker."""

from __future__ import annotations

import torch
from torch import Tensor

from pi_incubator.hooks.hook import Hook, Progress, is_due
from pi_incubator.tracking import Tracker
from pi_incubator.training.algorithm import Algorithm


class Logging(Hook):
    """Logs every `training.log_every` iterations: the only host sync of most iterations.

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
        metrics = to_numbers(progress.metrics) | self._algorithm.pop_metrics()
        self._tracker.log(progress.iteration, progress.env_steps, metrics)


def to_numbers(metrics: dict[str, Tensor]) -> dict[str, float]:
    """0-dim tensors -> floats, in one transfer."""
    if not metrics:
        return {}
    values = torch.stack([value.float() for value in metrics.values()]).tolist()
    return dict(zip(metrics, values, strict=True))
