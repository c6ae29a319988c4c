"""The training loop: the only one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from pi_incubator import checkpoint
from pi_incubator.checkpoint import Part
from pi_incubator.hooks.hook import Hook, Progress
from pi_incubator.run_folder import RunFolder
from pi_incubator.tracking import Tracker
from pi_incubator.training.algorithm import Algorithm


def train(
    algorithm: Algorithm,
    hooks: Sequence[Hook],
    folder: RunFolder,
    parts: Mapping[str, Part],
    tracker: Tracker,
    restored: Callable[[], None],
) -> None:
    """Train to the last iteration, continuing from the newest checkpoint in `folder` where there is one.

    `restored` is called when that checkpoint is loaded, before the first iteration.
    """
    first = checkpoint.restore(folder, parts, algorithm.distributed)
    restored()
    for iteration in range(first, algorithm.num_iterations):
        with tracker.span("collect"):
            algorithm.collect()
        with tracker.span("update"):
            metrics = algorithm.update()
        is_last = iteration + 1 == algorithm.num_iterations
        progress = Progress(iteration, algorithm.env_steps, metrics, is_last)
        for hook in hooks:
            if hook.due(progress):
                hook(progress)
