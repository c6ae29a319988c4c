"""The null object: no tracking store; the run folder's metrics file and the console remain."""

from __future__ import annotations

from pi_incubator.config import ExperimentConfig
from pi_incubator.registry import tracker
from pi_incubator.run_folder import RunFolder
from pi_incubator.tracking._base import Tracker


@tracker("none")
class NoTracker(Tracker):
    """Records nothing."""

    def __init__(self, cfg: ExperimentConfig, folder: RunFolder, start_iteration: int = 0) -> None:
        pass
