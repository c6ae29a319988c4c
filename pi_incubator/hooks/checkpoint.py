"""The run is saved, so that it can continue bit for bit."""

from __future__ import annotations

from collections.abc import Mapping

from pi_incubator.checkpoint import BackgroundSaver, Part
from pi_incubator.config import ExperimentConfig
from pi_incubator.distributed import Distributed
from pi_incubator.hooks.hook import Hook, Progress, is_due
from pi_incubator.run_folder import RunFolder


class Checkpoints(Hook):
    """Saves every `checkpoint.save_every` iterations, and after the last one, beside training.

    Comes after the guards, which wait for updates in the background and refuse what must not be saved.

    Args:
        cfg: reads `checkpoint`.
        folder: the run's.
        parts: what is saved.
        distributed: the ranks, all of which call this hook.
    """

    def __init__(
        self,
        cfg: ExperimentConfig,
        folder: RunFolder,
        parts: Mapping[str, Part],
        distributed: Distributed,
    ) -> None:
        self._save_every = cfg.checkpoint.save_every
        self._saver = BackgroundSaver(folder, parts, cfg, distributed)

    def due(self, progress: Progress) -> bool:
        return is_due(progress, self._save_every) or self._saver.has_failed

    def __call__(self, progress: Progress) -> None:
        """Copy the run's state, and begin to write it; where training ends, wait until it is written.

        Raises:
            UserError: this checkpoint, or the one before it, cannot be written.
        """
        self._saver.save(progress.iteration, progress.env_steps)
        if progress.is_last or progress.stops:
            self._saver.wait()

    def close(self) -> None:
        """Wait for what is being written; a failure is a warning, because training has ended already."""
        self._saver.close()
