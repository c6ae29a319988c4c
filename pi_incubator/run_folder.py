"""The folder of one run: its files, the lock on it, and whether a run may continue what it holds.

Standard library and pydantic only, so that a mistake is reported before torch is imported.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import ValidationError

from envs_gpu.registry import nearest
from pi_incubator.config import (
    ConfigError,
    ExperimentConfig,
    check_names,
    load_saved,
    save_config,
)
from pi_incubator.config.errors import from_validation
from pi_incubator.config.models import OPEN
from pi_incubator.errors import UserError
from pi_incubator.provenance import flatten

# What may change between a run and its continuation. A named physics backend is not among it: the checkpoint
# holds the simulator's state, which no other backend reads.
MAY_CHANGE = (
    "experiment.output_dir",
    "env.max_contacts",
    "env.max_constraints",
    "guards.",
    "training.total_steps",
    "training.log_every",
    "compute.",
    "tracking.",
    "evaluation.",
    "checkpoint.",
    "deployment.",
)
CHECKPOINT_NAME = re.compile(r"iter_\d{8,}")


class RunFolder:
    """Paths of a run; as a context manager it makes the folder and holds it for this process alone.

    The lock belongs to the open file: the operating system releases it when the process ends, however it
    ends, so no stale lock is left behind. Reading a run needs no lock.

    Args:
        source: the run's config, or the path of an existing run.
    """

    def __init__(self, source: ExperimentConfig | str | Path) -> None:
        self.path = source.run_dir if isinstance(source, ExperimentConfig) else Path(source)
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.broken = self.path / "broken"
        self.curve = self.path / "curve.png"
        self.video = self.path / "video.mp4"
        self.onnx = self.path / "policy.onnx"
        self.evaluation = self.path / "evaluation.json"
        self.distillation = self.path / "distillation.json"
        self.mlflow_run_id = self.path / "mlflow_run_id"
        self._lock_path = self.path / ".lock"
        self._lock: int | None = None

    def export(self, target: str) -> Path:
        """Where a bundle goes unless the user names another folder."""
        return self.path / "export" / target

    def __enter__(self) -> RunFolder:
        """Make the folder and lock it.

        Raises:
            ConfigError: another process holds it, or it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            problem = f"{self.path} cannot be written ({error.strerror})"
            fix = "name a folder you can write to in experiment.output_dir"
            raise ConfigError("run folder", problem=problem, fix=fix) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(lock, 200).decode(errors="replace") or "another process"
            os.close(lock)
            file, name, problem = str(self._lock_path), self.path.name, f"{holder} is writing to this run"
            fix = "wait for it or stop it, or set another name"
            raise ConfigError(file, "experiment.name", name, problem=problem, fix=fix) from None
        os.ftruncate(lock, 0)
        os.write(lock, f"pid {os.getpid()} on {os.uname().nodename}".encode())
        self._lock = lock
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def saved(self) -> list[Path]:
        """The complete checkpoints, oldest first."""
        if not self.checkpoints.is_dir():
            return []
        found = (path for path in self.checkpoints.iterdir() if CHECKPOINT_NAME.fullmatch(path.name))
        return sorted(found, key=lambda path: int(path.name.removeprefix("iter_")))

    def clear(self) -> None:
        """Delete what an earlier run left here: checkpoints, metrics and all that was made from them."""
        for subfolder in (self.checkpoints, self.broken):
            shutil.rmtree(subfolder, ignore_errors=True)
        results = (self.curve, self.video, self.onnx, self.evaluation, self.distillation)
        for file in (self.metrics, *results, self.mlflow_run_id):
            file.unlink(missing_ok=True)


def begin(cfg: ExperimentConfig, folder: RunFolder) -> bool:
    """Ready a locked `folder` for `cfg`: clear it for a new run, and write the resolved config.

    Returns:
        Whether the run continues from a checkpoint.

    Raises:
        ConfigError: as `check_resume`.
    """
    resumes = check_resume(cfg, folder)
    if not resumes:
        folder.clear()
    partial = folder.config.with_suffix(".partial")
    save_config(cfg, partial)
    partial.replace(folder.config)
    return resumes


def keep_num_envs(cfg: ExperimentConfig, folder: RunFolder) -> ExperimentConfig:
    """`cfg`, where it leaves the number of worlds open, with that of the run in `folder` that it continues.

    Raises:
        ConfigError: other settings of `cfg` do not fit that number.
    """
    if cfg.env.num_envs != OPEN or cfg.checkpoint.resume == "never" or not folder.saved():
        return cfg
    try:
        return cfg.with_num_envs(load_saved(folder.config)[0].env.num_envs)
    except ValidationError as error:
        raise from_validation(error, {}, file=str(folder.config)) from None


def check_resume(cfg: ExperimentConfig, folder: RunFolder) -> bool:
    """Whether a run of `cfg` continues what `folder` holds; changes nothing.

    Raises:
        ConfigError: it should continue a run that began with other settings (see MAY_CHANGE), or
            `checkpoint.resume` is `must` and there is no checkpoint.
    """
    if cfg.checkpoint.resume == "never":
        return False
    if not folder.saved():
        if cfg.checkpoint.resume == "must":
            file, problem = str(folder.checkpoints), "there is no checkpoint"
            fix = "set it to auto, or name the run that has one in experiment.name"
            raise ConfigError(file, "checkpoint.resume", "must", problem=problem, fix=fix)
        return False
    old, new = flatten(load_saved(folder.config)[0]), flatten(cfg)
    # The names first: another algorithm or network has other keys too.
    for key in sorted(old.keys() | new.keys(), key=lambda key: not key.endswith(".name")):
        was, value = old.get(key), new.get(key)
        if not _continues(key, was, value):
            fix = "set another experiment.name, or checkpoint.resume=never to delete that run and start anew"
            problem = f"the run to be continued has {was!r}"
            raise ConfigError(str(folder.config), key, value, problem=problem, fix=fix)
    return True


def _continues(key: str, old: Any, new: Any) -> bool:
    """Whether a run that had `old` for `key` can continue with `new`."""
    # What auto chose is known once the checkpoint is loaded: it is refused then if it does not fit.
    chosen = key == "env.backend" and "auto" in (old, new)
    return old == new or chosen or key.startswith(MAY_CHANGE)


def open_run(
    run: str, device: str = "auto", overrides: Sequence[str] = ()
) -> tuple[ExperimentConfig, RunFolder]:
    """The saved config of the run folder `run`, with `section.key=value` overrides, before torch is imported.

    A run is opened on `device`, whatever it was trained on: a policy from a GPU is judged on a laptop too.

    Raises:
        UserError: it is no run folder, has no checkpoint, or needs what is not installed here.
    """
    folder = RunFolder(run)
    if not os.path.isfile(folder.config):  # false where pathlib would raise, at a name too long for a file
        known = [path.parent.name for path in folder.path.parent.glob(f"*/{folder.config.name}")]
        guess = nearest(folder.path.name, known)
        hint = f"did you mean {folder.path.with_name(guess)}?" if guess else "name the folder of a run"
        raise UserError(f"{run}: is no run folder (it has no {folder.config.name}); {hint}")
    cfg, sources = load_saved(folder.config, [f"compute.device={device}", *overrides])
    check_names(cfg, sources)
    if not folder.saved():
        raise UserError(f"{run}: has no checkpoint yet; train it first")
    return cfg, folder
