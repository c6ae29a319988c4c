"""Starting a run in its folder: whether it continues what is there, and what becomes of an older run.

Needs no torch, so that a mistake is reported before torch is imported.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from envs_gpu.errors import SettingError
from envs_gpu.registry import nearest
from pi_incubator.checkpoint_files import Checkpoint
from pi_incubator.config import (
    ExperimentConfig,
    RunSettingError,
    check_names,
    load_saved,
    save_config,
)
from pi_incubator.config.errors import from_validation
from pi_incubator.config.models import OPEN
from pi_incubator.errors import UserError
from pi_incubator.inputs import (
    FROM,
    MODEL,
    Inputs,
    check_model_unchanged,
    check_unchanged,
    copy_model,
    input_of,
    inputs_of,
    original_model,
    read_inputs,
    same_content,
    write_inputs,
)
from pi_incubator.previous import put_back, recover, set_aside
from pi_incubator.provenance import flatten
from pi_incubator.run_paths import RunFolder

__all__ = [
    "RunFolder",
    "Start",
    "begin",
    "check_origin",
    "check_resume",
    "find_run",
    "keep_num_envs",
    "open_run",
    "place_of",
    "recover",
    "starting",
    "with_own_model",
]

# What may change between a run and its continuation. A named physics backend is not among it: the checkpoint
# holds the simulator's state, which no other backend reads.
MAY_CHANGE = (
    "experiment.name",
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

ROOT = "env.model_root"
"""Compared as `env.model` is: by the content of the files."""

DO_NOT_MATTER = ("init_log_std",)
"""Settings of a network that say nothing about its weights."""


class Start:
    """A start of a run. Until `commit`, all that was in its folder can be put back.

    Args:
        cfg: the experiment.
        folder: the run's, locked.
        inputs: what it reads.
        resumes: whether it continues the run in `folder`.
    """

    def __init__(self, cfg: ExperimentConfig, folder: RunFolder, inputs: Inputs, resumes: bool) -> None:
        self.cfg = cfg
        """With the run's own copy of the robot."""
        self.resumes = resumes
        self._folder, self._inputs, self._is_committed = folder, inputs, False
        self._aside: Path | None = None
        self._has_made_room = self._has_copied_model = False
        self._mlflow_run_id = _bytes_of(folder.mlflow_run_id)
        self._partial_model = folder.path / f".{folder.model.name}.partial"

    def commit(self) -> None:
        """Write the settings: the run has loaded what it continues from, and everything else is ready too."""
        if not self.resumes:
            write_inputs(self._inputs, self._folder)
        partial = self._folder.config.with_suffix(".partial")
        save_config(_with_relative_model(self.cfg, self._folder), partial)
        partial.replace(self._folder.config)
        self._is_committed = True
        if self._aside:
            print(f"what was in {self._folder.path} is now in {self._aside}")

    def make_room(self) -> None:
        """Move an older run aside, and copy the robot into the folder."""
        if self.resumes:
            return
        shutil.rmtree(self._partial_model, ignore_errors=True)
        try:
            copied = copy_model(self._inputs, self._partial_model)  # first: it may be the older run's own
        except OSError as error:
            problem, fix = f"cannot be copied into the run ({error})", "make its files readable, and room"
            raise UserError(f"{MODEL} = {self.cfg.env.model!r}: {problem}; {fix}") from error
        self._aside = set_aside(self._folder)
        self._has_made_room = True
        if copied:
            if self._folder.model.exists():
                problem, fix = "is in the way of the run's copy of env.model", "rename it"
                raise UserError(f"{self._folder.model}: {problem}; {fix}")
            self._partial_model.rename(self._folder.model)
            self._has_copied_model = True
            own = self._folder.model.absolute()
            root = None if self.cfg.env.model_root is None else own
            self.cfg = _with_model(self.cfg, own / copied.relative_to(self._partial_model), root)

    def undo(self) -> None:
        """Put back what was there, unless the run has really begun."""
        if self._is_committed:
            return
        if self._has_made_room:
            if self._has_copied_model:
                shutil.rmtree(self._folder.model)
            put_back(self._folder, self._aside)
        shutil.rmtree(self._partial_model, ignore_errors=True)
        if self.resumes and self._mlflow_run_id is None:
            self._folder.mlflow_run_id.unlink(missing_ok=True)
        elif self.resumes and self._mlflow_run_id is not None:
            self._folder.mlflow_run_id.write_bytes(self._mlflow_run_id)


@contextmanager
def starting(cfg: ExperimentConfig, folder: RunFolder, origin: Checkpoint | None = None) -> Iterator[Start]:
    """Start a run of `cfg` in a locked folder: it continues what is there, or moves it aside.

    Whatever is raised before `Start.commit` leaves the folder as it was.

    Args:
        cfg: the experiment.
        folder: the run's, locked.
        origin: the checkpoint that a new run starts with (`checkpoint.from`).

    Raises:
        ConfigError: as `check_resume`.
        UserError: the folder cannot be changed.
    """
    recover(folder)
    resumes = check_resume(cfg, folder)
    inputs = {} if resumes else inputs_of(cfg)
    if origin is not None:
        inputs[FROM] = [input_of(origin)]
    start = Start(cfg, folder, inputs, resumes)
    try:
        try:
            start.make_room()
        except OSError as error:
            recover(folder)
            raise UserError(f"{folder.path}: an older run there cannot be moved aside ({error})") from error
        yield start
    except BaseException:
        start.undo()
        raise


def begin(cfg: ExperimentConfig, folder: RunFolder) -> bool:
    """Start a run of `cfg` in a locked folder, for callers with whom nothing can fail afterwards.

    Returns:
        Whether the run continues from a checkpoint.

    Raises:
        ConfigError, UserError: as `starting`.
    """
    with starting(cfg, folder) as start:
        start.commit()
    return start.resumes


def place_of(config: Path, overrides: Sequence[str]) -> list[str]:
    """Overrides by which the saved settings of a run name the place where that run is now.

    Args:
        config: the file; of another one there is nothing to say.
        overrides: of the user, which are stronger.
    """
    folder = RunFolder(config.absolute().parent)
    if config.name != folder.config.name or not folder.inputs.is_file():
        return []
    place = {"experiment.name": folder.path.name, "experiment.output_dir": str(folder.path.parent)}
    given = {text.partition("=")[0].strip() for text in overrides}
    return [f"{field}={json.dumps(value)}" for field, value in place.items() if field not in given]


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
        ConfigError: it should continue a run that began with other settings (see MAY_CHANGE) or other input
            files, or `checkpoint.resume` is `must` and there is no checkpoint.
    """
    if cfg.checkpoint.resume == "never":
        return False
    if not folder.saved():
        if cfg.checkpoint.resume == "must":
            file, problem = str(folder.config), f"there is no checkpoint in {folder.checkpoints}"
            fix = "set it to auto, or name the run that has one in experiment.name"
            raise RunSettingError(file, "checkpoint.resume", "must", problem=problem, fix=fix)
        return False
    old, new = flatten(load_saved(folder.config)[0]), flatten(cfg)
    # The names first: another algorithm or network has other keys too.
    for key in sorted(old.keys() | new.keys(), key=lambda key: not key.endswith(".name")):
        was, value = old.get(key), new.get(key)
        if not (_continues(key, was, value) or same_content(MODEL if key == ROOT else key, folder)):
            problem = f"the run to be continued, {folder.path}, has {was!r}"
            fix = (
                "set another experiment.name, with checkpoint.from to start with the weights of that run, "
                "or checkpoint.resume=never to start anew"
            )
            raise RunSettingError(str(folder.config), key, value, problem=problem, fix=fix)
    _check_from(cfg, folder)
    check_unchanged(cfg, folder)
    return True


def _check_from(cfg: ExperimentConfig, folder: RunFolder) -> None:
    """Refuse to start a run that is already there with the weights of another one."""
    asked = cfg.checkpoint.from_run
    before = [os.path.realpath(one.path) for one in read_inputs(folder).get(FROM, [])]
    if asked is not None and os.path.realpath(asked) not in before:
        problem = f"the run in {folder.path} has begun already, {f'from {before[0]}' if before else 'anew'}"
        fix = "leave it out to continue that run, or set another experiment.name"
        raise RunSettingError(str(folder.config), FROM, asked, problem=problem, fix=fix)


def _continues(key: str, old: Any, new: Any) -> bool:
    """Whether a run that had `old` for `key` can continue with `new`."""
    # What auto chose is known once the checkpoint is loaded: it is refused then if it does not fit.
    chosen = key == "env.backend" and "auto" in (old, new)
    return old == new or chosen or key.startswith(MAY_CHANGE)


def check_origin(cfg: ExperimentConfig) -> None:
    """Check that the run that `cfg` starts from exists, and has the same network.

    Raises:
        SettingError: another network.
        UserError: it is no run, or has no checkpoint.
    """
    run = cfg.checkpoint.from_run
    if run is None:
        return
    there = load_saved(find_run(run).config)[0].network.model_dump(mode="json")
    here = cfg.network.model_dump(mode="json")
    for key in sorted(there.keys() | here.keys(), key=lambda key: key != "name"):
        if there.get(key) != here.get(key) and key not in DO_NOT_MATTER:
            problem = f"that run has network.{key} = {there.get(key)!r}, this one {here.get(key)!r}"
            raise SettingError(FROM, run, problem, "set the section network as in that run")


def with_own_model(cfg: ExperimentConfig, folder: RunFolder) -> ExperimentConfig:
    """`cfg`, which continues the run in `folder`, with that run's own copy of the robot where it has one."""
    saved = load_saved(folder.config)[0].env
    is_own = saved.model is not None and Path(saved.model).is_relative_to(folder.model.absolute())
    return _with_model(cfg, saved.model, saved.model_root) if saved.model is not None and is_own else cfg


def find_run(run: str) -> RunFolder:
    """The run folder `run`.

    Raises:
        UserError: it is no run folder, or has no checkpoint.
    """
    folder = RunFolder(run)
    if not os.path.isfile(folder.config):  # false where pathlib would raise, at a name too long for a file
        known = [path.parent.name for path in folder.path.parent.glob(f"*/{folder.config.name}")]
        guess = nearest(folder.path.name, known)
        hint = f"did you mean {folder.path.with_name(guess)}?" if guess else "name the folder of a run"
        raise UserError(f"{run}: is no run folder (it has no {folder.config.name}); {hint}")
    if not folder.saved():
        raise UserError(f"{run}: has no checkpoint yet; train it first")
    return folder


def open_run(
    run: str, device: str = "auto", overrides: Sequence[str] = ()
) -> tuple[ExperimentConfig, RunFolder]:
    """The saved config of the run folder `run`, with `section.key=value` overrides, before torch is imported.

    A run is opened on `device`, whatever it was trained on: a policy from a GPU is judged on a laptop too.

    Raises:
        UserError: it is no run folder, has no checkpoint, or needs what is not installed here.
    """
    folder = find_run(run)
    cfg, sources = load_saved(folder.config, [f"compute.device={device}", *overrides])
    check_names(cfg, sources)
    check_model_unchanged(cfg, folder)
    for line in original_model(cfg, folder):
        print(line, file=sys.stderr)
    return cfg, folder


def _with_model(cfg: ExperimentConfig, model: str | Path, root: str | Path | None) -> ExperimentConfig:
    places = {"model": str(model), "model_root": None if root is None else str(root)}
    return cfg.model_copy(update={"env": cfg.env.model_copy(update=places)})


def _with_relative_model(cfg: ExperimentConfig, folder: RunFolder) -> ExperimentConfig:
    """`cfg` as it is saved: the run's own copy of the robot is named relative to the run's folder."""
    root = folder.path.absolute()
    if cfg.env.model is None or not Path(cfg.env.model).is_relative_to(folder.model.absolute()):
        return cfg
    of_model = None if cfg.env.model_root is None else Path(cfg.env.model_root).relative_to(root)
    return _with_model(cfg, Path(cfg.env.model).relative_to(root), of_model)


def _bytes_of(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None
