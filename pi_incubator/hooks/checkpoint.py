"""The run is saved, so that it can continue bit for bit."""

from __future__ import annotations

from collections.abc import Mapping

from pi_incubator import checkpoint
from pi_incubator.checkpoint import Part
from pi_incubator.config import ExperimentConfig
from pi_incubator.distributed import Distributed
from pi_incubator.hooks.hook import Hook, Progress, is_due
from pi_incubator.run_folder import RunFolder


class Checkpoints(Hook):
    """Saves every `checkpoint.save_every` iterations, and after the last one.

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
        self._cfg, self._folder, self._parts, self._distributed = cfg, folder, parts, distributed

    def due(self, progress: Progress) -> bool:
        return is_due(progress, self._cfg.checkpoint.save_every)

    def __call__(self, progress: Progress) -> None:
        checkpoint.save(
            self._folder,
            progress.iteration,
            progress.env_steps,
            self._parts,
            self._cfg,
            self._cfg.checkpoint.keep,
            self._distributed,
        )
