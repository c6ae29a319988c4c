"""Where metrics go: a tracking store (one file each), the run's metrics file and the console."""

from __future__ import annotations

from pi_incubator.config import ConfigError, ExperimentConfig
from pi_incubator.provenance import flatten
from pi_incubator.registry import trackers
from pi_incubator.run_folder import RunFolder
from pi_incubator.tracking._base import Tracker
from pi_incubator.tracking._composite import CompositeTracker
from pi_incubator.tracking._console import ConsoleTracker
from pi_incubator.tracking._jsonl import JsonlTracker, read_metrics

__all__ = ["Tracker", "make_tracker", "read_metrics"]


def make_tracker(cfg: ExperimentConfig, folder: RunFolder, start_iteration: int = 0) -> Tracker:
    """Everything that records the run of `cfg`; its settings are logged at once.

    Args:
        cfg: the experiment; `tracking.backend` names the tracking store.
        folder: the run's folder.
        start_iteration: the first iteration that will be logged; later ones from before are dropped.

    Raises:
        UnknownNameError: no such tracking store.
        ConfigError: its package is not installed, or the store cannot be opened.
    """
    try:
        store = trackers.get(cfg.tracking.backend)
    except ModuleNotFoundError as error:
        file, backend = str(folder.config), cfg.tracking.backend
        problem = f"needs {error.name}, not installed here"
        fix = f"pip install {error.name}, or set it to none"
        raise ConfigError(file, "tracking.backend", backend, problem=problem, fix=fix) from None
    makers = (store, JsonlTracker, ConsoleTracker)
    recorders = [make(cfg, folder, start_iteration) for make in makers]
    tracker = CompositeTracker(recorders, env_steps=start_iteration * cfg.batch_size)
    tracker.log_params(flatten(cfg))
    return tracker
