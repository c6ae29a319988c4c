"""The files that a training reads: hashed when a run starts, and compared when it continues.

`<run>/inputs.json` holds the hashes. The robot of `env.model` is also copied to `<run>/model/`, with the
files that it reads, and the run uses that copy: it can be judged and continued on another machine.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from dataclasses import field as dataclass_field
from itertools import accumulate
from pathlib import Path
from typing import Any

from envs_gpu.errors import ModelError
from envs_gpu.model_files import real
from envs_gpu.model_names import find_model, is_collected
from pi_incubator.checkpoint_files import Checkpoint, read_newest, sha256_of
from pi_incubator.config import ConfigError, ExperimentConfig, RunSettingError
from pi_incubator.config.dataset_address import absolute, parse_address
from pi_incubator.config.models import EnvSection
from pi_incubator.errors import UserError
from pi_incubator.run_paths import RunFolder

FORMAT = 1
ITSELF = "."
"""The name, among the files that belong to an input, of the one that the setting names."""
MODEL = "env.model"
FROM = "checkpoint.from"
DATASET = "dataset.path"
NOT_COMPARED = (FROM,)
"""Read only once, when a run begins."""
WEIGHTS = ("policy.safetensors", "critic.safetensors")
"""What is read of another run's checkpoint."""


@dataclass(frozen=True)
class Input:
    """One file or run that a setting names, and what it reads in turn."""

    path: str
    """Absolute."""
    files: dict[str, str]
    """Name -> SHA-256."""
    places: dict[str, str] = dataclass_field(default_factory=dict)
    """Name -> path as it is written, where that is another one: `..` after a link leads elsewhere."""

    def place(self, name: str) -> str:
        """The path of a file, relative to the folder of `path`."""
        return Path(self.path).name if name == ITSELF else self.places.get(name, name)


Inputs = dict[str, list[Input]]
"""By the setting that names them, `section.key`."""


def with_absolute_paths(cfg: ExperimentConfig) -> ExperimentConfig:
    """`cfg` with absolute paths of all that a training reads, or writes elsewhere than in its own folder."""
    fields = (*cfg.algorithm.runs_read, *cfg.algorithm.files_read, *cfg.algorithm.files_written)
    algorithm = {name: _absolute(getattr(cfg.algorithm, name)) for name in fields}
    named = cfg.env.model
    model = named if named is not None and is_collected(named) else _absolute(named)
    dataset = None if cfg.dataset.path is None else absolute(cfg.dataset.path)
    changes: dict[str, Any] = {
        "env": cfg.env.model_copy(update={"model": model, "model_root": _absolute(cfg.env.model_root)}),
        "checkpoint": cfg.checkpoint.model_copy(update={"from_run": _absolute(cfg.checkpoint.from_run)}),
        "dataset": cfg.dataset.model_copy(update={"path": dataset}),
        "training": cfg.training.model_copy(update={"record": _absolute(cfg.training.record)}),
        "algorithm": cfg.algorithm.model_copy(update=algorithm),
    }
    return cfg.model_copy(update=changes)


def with_found_model(cfg: ExperimentConfig) -> ExperimentConfig:
    """`cfg` with the file of a robot that is named in a collection, which is downloaded if need be.

    Raises:
        SettingError: there is no such robot, or it cannot be had.
    """
    if cfg.env.model is None or not is_collected(cfg.env.model):
        return cfg
    place = find_model(cfg.env.model, cfg.env.model_root)
    root = place.root or place.path.parent
    found = {"model": str(place.path.absolute()), "model_root": str(root.absolute())}
    return cfg.model_copy(update={"env": cfg.env.model_copy(update=found)})


def check_model(cfg: ExperimentConfig) -> None:
    """Check that the robot of `cfg` can be simulated, before torch is imported.

    Raises:
        UserError: it cannot.
        SettingError: a limit that fits nothing.
    """
    if cfg.env.model is None:
        return
    from envs_gpu.user_model import UserModel  # imports mujoco, which takes time

    _model(cfg.env)
    try:
        UserModel(cfg.env.model, cfg.env.model_root, cfg.env.limits).check()
    except ModelError as error:
        raise UserError(str(error)) from None


def inputs_of(cfg: ExperimentConfig, resumes: bool = False) -> Inputs:
    """What a training of `cfg` reads, as it is now; where it `resumes`, without what it read only once.

    Raises:
        ConfigError: something is missing or cannot be read.
        UserError: a run has no checkpoint.
    """
    inputs: Inputs = {}
    if cfg.env.model is not None:
        inputs[MODEL] = [_model(cfg.env)]
    for name in cfg.algorithm.runs_read:
        inputs[f"algorithm.{name}"] = [_run(run) for run in _listed(getattr(cfg.algorithm, name))]
    for name in cfg.algorithm.files_read:
        files = _listed(getattr(cfg.algorithm, name))
        inputs[f"algorithm.{name}"] = [_file(f"algorithm.{name}", file) for file in files]
    if cfg.dataset.path is not None:
        inputs[DATASET] = [_dataset(cfg.dataset.path)]
    if cfg.checkpoint.from_run is not None and not resumes:
        inputs[FROM] = [_run(cfg.checkpoint.from_run)]
    return {field: found for field, found in inputs.items() if found}


def input_of(checkpoint: Checkpoint) -> Input:
    """The weights of a checkpoint of another run, as an input."""
    files = {name: checkpoint.files[name] for name in WEIGHTS if name in checkpoint.files}
    return Input(str(checkpoint.run.absolute()), files)


def write_inputs(inputs: Inputs, folder: RunFolder) -> None:
    """Write `inputs.json`, whole or not at all."""
    entries = {field: [asdict(one) for one in found] for field, found in inputs.items()}
    partial = folder.inputs.with_suffix(".partial")
    partial.write_text(json.dumps({"format": FORMAT, "inputs": entries}, indent=2) + "\n", encoding="utf-8")
    partial.replace(folder.inputs)


def read_inputs(folder: RunFolder) -> Inputs:
    """What the run in `folder` read when it began; empty where it has not written that down.

    Raises:
        UserError: the file is damaged, or a later version wrote it.
    """
    if not folder.inputs.is_file():
        return {}
    try:
        content = json.loads(folder.inputs.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            problem, fix = (
                f"has format {content['format']}, this version reads {FORMAT}",
                "upgrade pi_incubator",
            )
            raise UserError(f"{folder.inputs}: {problem}; {fix}")
        entries = content["inputs"].items()
        return {
            setting: [Input(one["path"], dict(one["files"]), dict(one.get("places", {}))) for one in found]
            for setting, found in entries
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        fix = "restore it from a copy, or set another experiment.name"
        raise UserError(f"{folder.inputs}: is damaged ({error!r}); {fix}") from None


def check_unchanged(cfg: ExperimentConfig, folder: RunFolder) -> None:
    """Check that a training of `cfg` reads what the run in `folder` read when it began.

    Raises:
        ConfigError: an input differs.
        UserError: as `inputs_of` and `read_inputs`.
    """
    before = read_inputs(folder)
    if before:
        _compare(before, inputs_of(cfg, resumes=True), folder)


def check_model_unchanged(cfg: ExperimentConfig, folder: RunFolder) -> None:
    """Check that the robot of `cfg` is that of the run in `folder`; errors as of `check_unchanged`."""
    before = read_inputs(folder).get(MODEL)
    if before and cfg.env.model is not None:
        _compare({MODEL: before}, {MODEL: [_model(cfg.env)]}, folder)


def original_model(cfg: ExperimentConfig, folder: RunFolder) -> list[str]:
    """A line that says which file that the run in `folder` began with has changed since; none if none has.

    The run uses its own copy, so this is no error. A file that is gone is not a change.
    """
    for model in read_inputs(folder).get(MODEL, []):
        if cfg.env.model is None or model.path == cfg.env.model:
            continue
        folder_of = Path(model.path).parent
        for name, sha256 in model.files.items():
            file = folder_of / model.place(name)
            if os.path.isfile(file) and sha256_of(file) != sha256:
                own = f"the run's own copy {cfg.env.model} is used"
                return [f"note: {file} has changed since the run began; {own}"]
    return []


def copy_model(inputs: Inputs, to: Path) -> Path | None:
    """Copy the robot, with the files that it reads, into the new folder `to`.

    Returns:
        The copied MJCF file; None where `inputs` has no robot.

    Raises:
        ConfigError: a file has changed since `inputs_of`.
        OSError: it cannot be copied.
    """
    if MODEL not in inputs:
        return None
    (model,) = inputs[MODEL]
    source = Path(model.path)
    place = _place_in_copy(model)
    for name, sha256 in model.files.items():
        original, target = source.parent / model.place(name), to / place.parent / model.place(name)
        target.parent.mkdir(parents=True, exist_ok=True)  # also of folders that a later `..` leaves
        shutil.copyfile(original, target)
        if sha256_of(target) != sha256:
            problem, fix = f"{original} changed while the run was starting", "start again"
            raise ConfigError(str(source), MODEL, model.path, problem=problem, fix=fix)
    return to / place


def same_content(field: str, folder: RunFolder) -> bool:
    """Whether the setting `field` may name another path on a resume, because its content was recorded."""
    return field in read_inputs(folder) and field not in NOT_COMPARED


def _place_in_copy(model: Input) -> Path:
    """Where the model's own file is in a copy: as far below it as its files lead up."""
    path, ups = Path(model.path), max(_ups(model.place(name)) for name in model.files)
    return Path(*real(path.parent).parts[1:][-ups:] if ups else (), path.name)


def _ups(path: str) -> int:
    """How many folders up a path leads at its highest."""
    heights = accumulate(1 if part == os.pardir else -1 for part in Path(path).parts)
    return max(0, *heights)


def _compare(before: Inputs, now: Inputs, folder: RunFolder) -> None:
    for setting, earlier in before.items():
        if setting in NOT_COMPARED:
            continue
        named = now.get(setting, [])
        if len(earlier) != len(named):
            problem = f"names {len(named)}, and the run to be continued began with {len(earlier)}"
            fix = f"name {', '.join(one.path for one in earlier)}, or set another experiment.name"
            raise RunSettingError(str(folder.inputs), setting, problem=problem, fix=fix)
        for old, new in zip(earlier, named, strict=True):
            for name in _differences(old.files, new.files):
                file = new.path if name == ITSELF else os.path.join(_root(setting, new.path), new.place(name))
                problem = f"{file} is not what the run began with"
                if parse_address(new.path):
                    problem = "these are not the episodes that the run began with"
                raise RunSettingError(
                    str(folder.inputs), setting, new.path, problem=problem, fix=_fix(setting, new, folder)
                )


def _fix(field: str, now: Input, folder: RunFolder) -> str:
    if parse_address(now.path):
        return "narrow ?where= to those, for example by run, or set another experiment.name"
    kept = sorted(folder.model.rglob(f"*{Path(now.path).suffix}")) if field == MODEL else []
    own = folder.model.absolute() / _place_in_copy(now)
    if kept and own != Path(now.path):
        copy = own if own in kept else kept[0]
        return f"restore it, set this to the run's own copy {copy}, or set another experiment.name"
    return "restore it, or set another experiment.name"


def _root(field: str, path: str) -> str:
    """The folder that names of an input's files are relative to."""
    return os.path.dirname(path) if field == MODEL else path


def _differences(before: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    """Names whose content is another one, or that only one of the two has."""
    yield from (name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name))


def _model(cfg: EnvSection) -> Input:
    from envs_gpu.models import model_files  # imports mujoco, which takes time

    assert cfg.model is not None
    path = cfg.model
    try:
        files = model_files(path, cfg.model_root)
        hashes = {name: sha256_of(file) for name, file in files.items()}
        return Input(path, hashes, _places(Path(path).parent, files))
    except (ModelError, OSError) as error:
        raise UserError(f"{MODEL} = {path!r}: {error}") from None


def _places(folder: Path, files: Mapping[str, Path]) -> dict[str, str]:
    """As of `Input`, of files that a model in `folder` names."""
    below = {name: file for name, file in files.items() if name != ITSELF and file.is_relative_to(folder)}
    written = {name: str(file.relative_to(folder)) for name, file in below.items()}
    return {name: path for name, path in written.items() if path != name}


def _run(path: str) -> Input:
    """The weights of another run's newest checkpoint, and the robot that it was trained with."""
    folder = RunFolder(path)
    files = input_of(read_newest(folder, WEIGHTS)[0]).files
    for model in read_inputs(folder).get(MODEL, []):
        files |= {f"{folder.model.name}/{name}": sha256 for name, sha256 in model.files.items()}
    return Input(path, files)


def _file(field: str, path: str) -> Input:
    try:
        return Input(path, {ITSELF: sha256_of(Path(path))})
    except OSError as error:
        problem, fix = f"cannot be read ({error.strerror})", "name another file"
        raise ConfigError(path, field, path, problem=problem, fix=fix) from None


def _dataset(path: str) -> Input:
    """All files of a dataset, or which episodes of a store; files with a leading point are being written."""
    if address := parse_address(path):
        from pi_incubator.data.datasets.source import fingerprint_of  # imports torch

        return Input(path, {"episodes": fingerprint_of(address)})
    try:
        files = sorted(file for file in Path(path).iterdir() if file.is_file() and file.name[0] != ".")
        return Input(path, {file.name: sha256_of(file) for file in files})
    except OSError as error:
        problem, fix = f"cannot be read ({error.strerror})", "name the folder of a dataset"
        raise ConfigError(path, DATASET, path, problem=problem, fix=fix) from None


def _listed(value: Any) -> list[str]:
    """What a field names: nothing, one path or several."""
    return [value] if isinstance(value, str) else list(value or ())


def _absolute(value: Any) -> Any:
    """The value of a field with absolute paths."""
    if isinstance(value, str):
        return str(Path(value).expanduser().absolute())
    return tuple(map(_absolute, value)) if value else value
