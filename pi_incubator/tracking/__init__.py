"""Where metrics go: a tracking store (one file each), the run's metrics file and the console."""

from __future__ import annotations

from envs_gpu.errors import SettingError
from pi_incubator.config import ExperimentConfig
from pi_incubator.errors import UserError
from pi_incubator.provenance import flatten
from pi_incubator.registry import trackers
from pi_incubator.run_folder import RunFolder
from pi_incubator.tracking._base import Tracker
from pi_incubator.tracking._composite import CompositeTracker
from pi_incubator.tracking._console import ConsoleTracker
from pi_incubator.tracking._jsonl import JsonlTracker, read_metrics

__all__ = ["Tracker", "make_tracker", "read_metrics"]


def make_tracker(
    cfg: ExperimentConfig, folder: RunFolder, start_iteration: int = 0, world_size: int = 1
) -> Tracker:
    """Everything that records the run of `cfg`; its settings are logged at once.

    Args:
        cfg: the experiment; `tracking.backend` names the tracking store.
        folder: the run's folder.
        start_iteration: the first iteration that will be logged; later ones from before are dropped.
        world_size: processes that train together.

    Raises:
        UnknownNameError: no such tracking store.
        SettingError: its package is not installed.
        UserError: the store or the metrics file cannot be opened.
    """
    try:
        store = trackers.get(cfg.tracking.backend)
    except ModuleNotFoundError as error:
        problem = f"needs {error.name}, not installed here"
        fix = f"pip install {error.name}, or set it to none"
        raise SettingError("tracking.backend", cfg.tracking.backend, problem, fix) from None
    metrics = _open_metrics(cfg, folder, start_iteration)
    recorders = [store(cfg, folder, start_iteration), metrics]
    recorders.append(ConsoleTracker(cfg, folder, start_iteration, world_size))
    env_steps = start_iteration * cfg.steps_per_iteration * world_size
    tracker = CompositeTracker(recorders, env_steps)
    tracker.log_params(flatten(cfg))
    return tracker


def _open_metrics(cfg: ExperimentConfig, folder: RunFolder, start_iteration: int) -> JsonlTracker:
    """The run's own metrics file, opened before the store, in which a run would stay open otherwise."""
    try:
        return JsonlTracker(cfg, folder, start_iteration)
    except OSError as error:
        fix = "free some space or check the permissions"
        raise UserError(f"{folder.metrics}: cannot be written ({error.strerror}); {fix}") from None
