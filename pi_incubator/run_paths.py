"""The folder of one run: the paths of its files, and the lock on it."""

from __future__ import annotations

import fcntl
import os
import re
from pathlib import Path
from types import TracebackType

from pi_incubator.config import ConfigError, ExperimentConfig
from pi_incubator.errors import UserError

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
        self.engine_log = self.path / "MUJOCO_LOG.TXT"
        self.curve = self.path / "curve.png"
        self.video = self.path / "video.mp4"
        self.onnx = self.path / "policy.onnx"
        self.old_onnx = self.path / "policy.old.onnx"
        self.evaluation = self.path / "evaluation.json"
        self.distillation = self.path / "distillation.json"
        self.mlflow_run_id = self.path / "mlflow_run_id"
        self.inputs = self.path / "inputs.json"
        self.scene = self.path / "scene.json"
        self.model = self.path / "model"
        self.exports = self.path / "export"
        self.previous = self.path / "previous"
        self._lock_path = self.path / ".lock"
        self._lock: int | None = None

    def export(self, target: str) -> Path:
        """Where a bundle goes unless the user names another folder."""
        return self.exports / target

    @property
    def owned(self) -> tuple[Path, ...]:
        """Every file and folder that a run writes here, whether it is there or not."""
        results = (self.curve, self.video, self.onnx, self.old_onnx, self.evaluation, self.distillation)
        # A folder `model` without `inputs.json` is somebody else's.
        model = (self.model,) if self.inputs.exists() else ()
        notes = (self.metrics, self.engine_log, self.mlflow_run_id, self.config, self.inputs, self.scene)
        return (self.checkpoints, self.broken, self.exports, *model, *results, *notes)

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

    def is_being_trained(self) -> bool:
        """Whether a process holds this folder."""
        try:
            lock = os.open(self._lock_path, os.O_RDONLY)
        except OSError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(lock)
        return False

    def saved(self) -> list[Path]:
        """The complete checkpoints, oldest first.

        Raises:
            UserError: `checkpoints` is a link that leads nowhere.
        """
        if not self.checkpoints.is_dir():
            if self.checkpoints.is_symlink():
                problem = f"is a link to {self.checkpoints.readlink()}, which is not there"
                raise UserError(f"{self.checkpoints}: {problem}; mount its disk, or remove the link")
            return []
        found = (path for path in self.checkpoints.iterdir() if CHECKPOINT_NAME.fullmatch(path.name))
        return sorted(found, key=lambda path: int(path.name.removeprefix("iter_")))
