"""A training that has gone wrong is stopped before anything is saved of it."""

from __future__ import annotations

from pi_incubator.hooks.hook import Hook, Progress, is_due
from pi_incubator.training.algorithm import Algorithm


class Guards(Hook):
    """Checks worlds and weights whenever something is logged or saved.

    Args:
        algorithm: what is trained.
        log_every: iterations between two logs.
        save_every: iterations between two checkpoints.
    """

    def __init__(self, algorithm: Algorithm, log_every: int, save_every: int) -> None:
        self._algorithm, self._log_every, self._save_every = algorithm, log_every, save_every

    def due(self, progress: Progress) -> bool:
        return is_due(progress, self._log_every) or is_due(progress, self._save_every)

    def __call__(self, progress: Progress) -> None:
        if is_due(progress, self._save_every):
            self._algorithm.settle()
        self._algorithm.check()
