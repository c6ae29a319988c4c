"""The training loop: the only one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from pi_incubator import checkpoint, faults, interruption
from pi_incubator.checkpoint import Part
from pi_incubator.hooks.hook import Hook, Progress
from pi_incubator.interruption import Interrupted
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

    Raises:
        Interrupted: a signal came. The iteration that it came in was finished and saved, if it took no longer
            than `interruption.GRACE_S` after the signal.
    """
    first = checkpoint.restore(folder, parts, algorithm.distributed)
    restored()
    with interruption.deferred():
        for iteration in range(first, algorithm.num_iterations):
            with tracker.span("collect"):
                faults.reach("collect")
                algorithm.collect()
            with tracker.span("update"):
                faults.reach("update")
                metrics = algorithm.update()
            is_last = iteration + 1 == algorithm.num_iterations
            progress = Progress(iteration, algorithm.env_steps, metrics, is_last, algorithm)
            called = _call(hooks, progress)
            if signum := interruption.agree_to_stop(algorithm.distributed):
                _call([hook for hook in hooks if hook not in called], replace(progress, stops=True))
                raise Interrupted(signum)


def _call(hooks: Sequence[Hook], progress: Progress) -> list[Hook]:
    """Call the hooks that are due; returns those."""
    called = []
    for hook in hooks:
        if hook.due(progress):
            hook(progress)
            called.append(hook)
    return called
