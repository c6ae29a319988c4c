"""Checkpoints as files: published whole or not at all, and checked when they are read. Needs no torch.

    <run>/checkpoints/iter_00000123/   env.safetensors  policy.safetensors  ...  random.safetensors
                                       env.rank1.safetensors  ...  what further ranks have of their own
                                       manifest.json    what it is, the SHA-256 of every file, and its own

The name carries the last completed iteration; the run continues at the next one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pi_incubator import faults
from pi_incubator.errors import UserError
from pi_incubator.run_paths import RunFolder

FORMAT = 2
FORMAT_VERSIONS = {1: "0.1.0"}
"""The versions of this software that wrote earlier formats, which this one does not read."""
MANIFEST = "manifest.json"
OWN_HASH = "sha256"
"""Key of the manifest: SHA-256 of the manifest without this key. Later formats keep it as it is."""
DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What reading a damaged checkpoint raises."""
READ_TRIES, RETRY_S = 50, 0.05
"""How often a reader looks for the next checkpoint when training deletes the one that it reads."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """What the manifest of a checkpoint says."""

    path: Path
    iteration: int
    """The last completed iteration, counted from 0."""
    env_steps: int
    """Environment steps until then, over all worlds."""
    world_size: int
    """How many processes trained together."""
    files: Mapping[str, str]
    """File name -> SHA-256."""
    only_newest: tuple[str, ...]
    """The files that are deleted when a newer checkpoint is on disk."""
    config_sha256: str
    git_commit: str | None
    git_dirty: bool | None

    @property
    def progress(self) -> dict[str, int]:
        """How far the training was, for files of results."""
        return {"iteration": self.iteration, "env_steps": self.env_steps}

    @property
    def run(self) -> Path:
        """The folder of the run that it belongs to."""
        return self.path.parents[1]


def read_manifest(path: Path) -> Checkpoint:
    """What the manifest of the checkpoint in `path` says; its files are not read.

    Raises:
        DAMAGE: the manifest is damaged.
        UserError: another version of this software wrote it.
    """
    text = _content(path / MANIFEST).decode("utf-8")
    manifest = json.loads(text)
    is_whole = OWN_HASH in manifest and manifest_text(_without_hash(manifest)) == text
    if OWN_HASH in manifest and not is_whole and not _is_of_other_format(manifest, text):
        raise ValueError(f"{MANIFEST} is not as it was written")
    _check_format(path, manifest["format"])
    if not is_whole:
        raise ValueError(f"{MANIFEST} has no {OWN_HASH} that fits it")
    found = Checkpoint(
        path,
        _whole_number(manifest, "iteration"),
        _whole_number(manifest, "env_steps"),
        _whole_number(manifest, "world_size"),
        dict(manifest["files"]),
        tuple(manifest["only_newest"]),
        manifest["config_sha256"],
        manifest["git_commit"],
        manifest["git_dirty"],
    )
    for name in (*found.files, *found.only_newest):
        if Path(name).name != name or name in ("", ".", ".."):
            raise ValueError(f"{MANIFEST} names a file outside of the checkpoint, {name!r}")
    if path.name != checkpoint_name(found.iteration):
        raise ValueError(f"{MANIFEST} is that of iteration {found.iteration}")
    return found


def manifest_text(manifest: Mapping[str, Any]) -> str:
    """The text of a manifest, with its own hash."""
    own_hash = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    return json.dumps(dict(manifest) | {OWN_HASH: own_hash}, indent=2) + "\n"


def checkpoint_name(iteration: int) -> str:
    """The name of the folder of a checkpoint."""
    return f"iter_{iteration:08d}"


def latest(folder: RunFolder) -> Checkpoint | None:
    """The newest undamaged checkpoint, with a warning for each newer one; None when there is none at all.

    Every file is read. Only who holds the folder may call it; `read_newest` is for others.

    Raises:
        UserError: there are checkpoints and all are damaged, or another version wrote them.
    """
    saved = folder.saved()
    for path in reversed(saved):
        try:
            return _verify(path)
        except DAMAGE as error:
            _warn(path, error)
    if saved:
        fix = f"set checkpoint.resume=never to start anew, which keeps them in {folder.previous.name}/"
        raise UserError(f"{folder.checkpoints}: every checkpoint is damaged; {fix}")
    return None


def read_newest(folder: RunFolder, names: Iterable[str]) -> tuple[Checkpoint, dict[str, bytes]]:
    """The newest undamaged checkpoint, and the content of those of its files that `names` names.

    All content is of that one checkpoint. Training may go on: where it deletes a checkpoint that is being
    read, the next newest is read. Other files are not checked.

    Raises:
        UserError: there is no checkpoint, or every one is damaged, or another version wrote them.
    """
    for _ in range(READ_TRIES):
        saved = folder.saved()
        if not saved:
            raise UserError(f"{folder.path}: has no checkpoint; name the folder of a run, or train it first")
        for path in reversed(saved):
            try:
                return _read_files(path, names)
            except DAMAGE as error:
                if not path.exists():  # pruned; there is a newer one now
                    break
                _warn(path, error)
        if folder.saved() == saved:
            break
        time.sleep(RETRY_S)
    if folder.is_being_trained():
        fix = "it is being trained: wait for its next checkpoint"
    else:
        fix = "restore them from a copy, or train again with another experiment.name"
    raise UserError(f"{folder.checkpoints}: no checkpoint could be read whole; {fix}")


def publish(partial: Path, final: Path) -> None:
    """Give a written folder its name, once all of it has reached the disk."""
    for path in (*partial.iterdir(), partial):
        faults.reach("save", "fsync")
        _sync(path)
    if final.exists():
        final.rename(partial.with_name(f".{final.name}.replaced.partial"))
    faults.reach("save", "rename")
    partial.rename(final)
    _sync(final.parent)


def prune(folder: RunFolder, keep: int) -> None:
    """Delete what is older than the `keep` newest checkpoints, and what only the newest one keeps."""
    faults.reach("save", "prune")
    leftovers = list(folder.checkpoints.glob(".*.partial"))
    for path in folder.saved()[:-keep]:
        # Renamed first: a reader finds a checkpoint whole or not at all.
        hidden = path.with_name(f".{path.name}.pruned.partial")
        if hidden not in leftovers:
            path.rename(hidden)
            leftovers.append(hidden)
    for path in leftovers:
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.saved()[:-1]:
        for name in _only_newest(path):
            (path / name).unlink(missing_ok=True)


def set_damaged_aside(folder: RunFolder, found: Checkpoint) -> None:
    """Rename checkpoints newer than `found`, or their numbers would outlive good ones."""
    saved = folder.saved()
    for damaged in saved[saved.index(found.path) + 1 :]:
        shutil.rmtree(damaged.with_suffix(".damaged"), ignore_errors=True)
        damaged.rename(damaged.with_suffix(".damaged"))


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _without_hash(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in manifest.items() if key != OWN_HASH}


def _is_of_other_format(manifest: Mapping[str, Any], text: str) -> bool:
    """Whether a manifest that does not fit its own hash is of another format: a damaged number of the format
    is one other character in what this version wrote."""
    ours = manifest_text(_without_hash(manifest) | {"format": FORMAT})
    num_changed = abs(len(ours) - len(text)) + sum(a != b for a, b in zip(ours, text, strict=False))
    return manifest["format"] != FORMAT and num_changed > 1


def _whole_number(manifest: Mapping[str, Any], key: str) -> int:
    value = manifest[key]
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"{MANIFEST} has {key} = {str(value)[:40]!r}, which is no number of {key}")
    return value


def _content(file: Path) -> bytes:
    """The bytes of a file that a checkpoint names."""
    _check_is_file(file)
    return file.read_bytes()


def _check_is_file(file: Path) -> None:
    """Refuse what is no file and may have no end, such as a pipe or a device."""
    if file.exists() and not file.is_file():
        raise ValueError(f"{file.name} is no file")


def _check_format(path: Path, number: int) -> None:
    """Refuse the format of another version."""
    if type(number) is not int:
        raise ValueError(f"{MANIFEST} has a format that is no whole number")
    if number > FORMAT:
        problem = f"has format {number}, this version reads {FORMAT}"
        raise UserError(f"{path}: {problem}; upgrade pi_incubator")
    if version := FORMAT_VERSIONS.get(number):
        problem = f"was written by pi_incubator {version}, whose format this version does not read"
        raise UserError(f"{path}: {problem}; install that version to use it, or train again")


def _verify(path: Path) -> Checkpoint:
    """The checkpoint in `path`, every file of which has been checked; raises as `read_manifest`."""
    found = read_manifest(path)
    for name, sha256 in found.files.items():
        if name in found.only_newest and not (path / name).exists():
            continue
        _check_is_file(path / name)
        if sha256_of(path / name) != sha256:
            raise ValueError(f"{name} has another SHA-256 than when it was written")
    return found


def _read_files(path: Path, names: Iterable[str]) -> tuple[Checkpoint, dict[str, bytes]]:
    """The checkpoint in `path` and the content of some files; raises as `read_manifest`."""
    found = read_manifest(path)
    contents = {name: _content(path / name) for name in names if name in found.files}
    for name, content in contents.items():
        if hashlib.sha256(content).hexdigest() != found.files[name]:
            raise ValueError(f"{name} has another SHA-256 than when it was written")
    return found, contents


def _only_newest(path: Path) -> tuple[str, ...]:
    """The files of the checkpoint `path` that an older one may lack; none where it is damaged."""
    try:
        return read_manifest(path).only_newest
    except (*DAMAGE, UserError):
        return ()


def _warn(path: Path, error: Exception) -> None:
    log.warning("%s is damaged (%s); trying the one before it", path, error)


def _sync(path: Path) -> None:
    """Wait until a file or folder has reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
