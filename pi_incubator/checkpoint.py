"""Checkpoints: safetensors and a manifest, written whole or not at all.

    <run>/checkpoints/iter_00000123/   env.safetensors  policy.safetensors  ...  random.safetensors
                                       env.rank1.safetensors  ...  what further ranks have of their own
                                       manifest.json    what it is and the SHA-256 of every file

The name carries the last completed iteration; the run continues at the next one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pi_incubator.config import ExperimentConfig
from pi_incubator.errors import UserError
from pi_incubator.provenance import config_hash, git_state, library_versions
from pi_incubator.run_folder import RunFolder

FORMAT = 2
FORMAT_VERSIONS = {1: "0.1.0"}
"""The versions of this software that wrote earlier formats, which this one does not read."""
MANIFEST = "manifest.json"
RANDOM = "random"
LIBRARIES = ("torch", "tensordict", "torchrl", "safetensors", "mujoco", "mujoco-warp", "warp-lang", "jax")

log = logging.getLogger(__name__)


class HasState(Protocol):
    """Whatever can be saved as named tensors and continue from them."""

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: dict[str, Tensor], /) -> Any: ...


@dataclass(frozen=True)
class Part:
    """Something that a checkpoint holds."""

    value: HasState
    saved: Literal["always", "last", "never"] = "always"
    """`last` is kept in the newest checkpoint alone, for what is large, such as a replay buffer."""
    per_rank: bool = False
    """Whether each rank has one of its own, such as its worlds; of the others rank 0 saves the common one."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete, undamaged checkpoint on disk."""

    path: Path
    iteration: int
    """The last completed iteration, counted from 0."""
    env_steps: int
    """Environment steps until then, over all worlds."""


class TorchRandom:
    """torch's default generators, on the CPU and on every CUDA device in use."""

    def state_dict(self) -> dict[str, Tensor]:
        state = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_initialized():
            state |= {f"cuda.{i}": value for i, value in enumerate(torch.cuda.get_rng_state_all())}
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        torch.set_rng_state(state["cpu"])
        for index in range(torch.cuda.device_count()):
            if f"cuda.{index}" in state:
                torch.cuda.set_rng_state(state[f"cuda.{index}"], index)


def save(
    folder: RunFolder,
    iteration: int,
    env_steps: int,
    parts: Mapping[str, Part],
    cfg: ExperimentConfig,
    keep: int,
) -> Path:
    """Write the state of `parts` and of torch's generators; returns the checkpoint's folder.

    Args:
        folder: the run's.
        iteration: the one just completed, counted from 0.
        env_steps: environment steps until now, over all worlds.
        parts: what to save, by name; the names become file names.
        cfg: the experiment, whose hash is recorded.
        keep: newest checkpoints that stay; older ones are deleted once this one is on disk, and lose their
            parts that are `saved` as `last`.

    Raises:
        UserError: it cannot be written; the earlier checkpoints are untouched.
    """
    final = folder.checkpoints / f"iter_{iteration:08d}"
    partial = folder.checkpoints / f".{final.name}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        files = {}
        saved = {name: part for name, part in parts.items() if part.saved != "never"}
        for name, part in {**saved, RANDOM: Part(TorchRandom())}.items():
            file = partial / f"{name}.safetensors"
            save_file({key: _packed(value) for key, value in part.value.state_dict().items()}, file)
            files[file.name] = _sha256(file)
        only_newest = [f"{name}.safetensors" for name, part in saved.items() if part.saved == "last"]
        manifest = _manifest(iteration, env_steps, cfg, files, only_newest)
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        _publish(partial, final)
    except (OSError, SafetensorError) as error:
        fix = "free some space or check the permissions, then run again to continue"
        raise UserError(f"{final}: cannot be written ({error}); {fix}") from error
    _prune(folder, keep)
    return final


def latest(folder: RunFolder) -> Checkpoint | None:
    """The newest undamaged checkpoint, with a warning for each newer one; None when there is none at all.

    Raises:
        UserError: there are checkpoints and all are damaged.
    """
    saved = folder.saved()
    for path in reversed(saved):
        try:
            return _verify(path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s is damaged (%s); trying the one before it", path, error)
    if saved:
        fix = "set checkpoint.resume=never to delete them and start anew"
        raise UserError(f"{folder.checkpoints}: every checkpoint is damaged; {fix}")
    return None


def next_iteration(folder: RunFolder) -> int:
    """The iteration that `restore` will say to continue with; 0 when there is no checkpoint."""
    found = latest(folder)
    return found.iteration + 1 if found else 0


def restore(folder: RunFolder, parts: Mapping[str, Part]) -> int:
    """Load the newest undamaged checkpoint into `parts` and torch's generators.

    Returns:
        The iteration to continue with; 0 when there is no checkpoint.

    Raises:
        UserError: it does not fit `parts`, or every checkpoint is damaged.
    """
    found = latest(folder)
    if found is None:
        return 0
    for name, part in parts.items():
        if part.saved != "never":
            _load(found, name, part)
    # Last, because loading may itself draw random numbers.
    TorchRandom().load_state_dict(load_file(found.path / f"{RANDOM}.safetensors"))
    saved = folder.saved()
    for damaged in saved[saved.index(found.path) + 1 :]:
        # Out of the way, or its higher number would outlive the good ones when old ones are deleted.
        shutil.rmtree(damaged.with_suffix(".damaged"), ignore_errors=True)
        damaged.rename(damaged.with_suffix(".damaged"))
    return found.iteration + 1


def load_policy(run: RunFolder | str | Path, policy: HasState) -> Checkpoint:
    """Load the policy of a run's newest undamaged checkpoint; the run may still be going on.

    Raises:
        UserError: the run has no checkpoint, or none that fits `policy`.
    """
    return load_part(run, "policy", policy)


def load_part(run: RunFolder | str | Path, name: str, part: HasState) -> Checkpoint:
    """Load one part of a run's newest undamaged checkpoint; errors as of `load_policy`."""
    found = _newest(run)
    _load(found, name, Part(part))
    return found


def has_part(run: RunFolder | str | Path, name: str) -> bool:
    """Whether a run's newest undamaged checkpoint has a part `name`; errors as of `load_policy`."""
    return (_newest(run).path / f"{name}.safetensors").exists()


def _newest(run: RunFolder | str | Path) -> Checkpoint:
    folder = run if isinstance(run, RunFolder) else RunFolder(run)
    found = latest(folder)
    if found is None:
        raise UserError(f"{folder.path}: has no checkpoint; name the folder of a run, or train it first")
    return found


def _packed(tensor: Tensor) -> Tensor:
    """A copy on the CPU with storage of its own: safetensors refuses views, strides and shared memory."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _manifest(
    iteration: int, env_steps: int, cfg: ExperimentConfig, files: dict[str, str], only_newest: list[str]
) -> dict[str, Any]:
    git = git_state()
    return {
        "format": FORMAT,
        "iteration": iteration,
        "env_steps": env_steps,
        "config_sha256": config_hash(cfg),
        "git_commit": git and git.commit,
        "git_dirty": git and git.dirty,
        "libraries": library_versions(LIBRARIES),
        "files": files,
        "only_newest": only_newest,
    }


def _publish(partial: Path, final: Path) -> None:
    """Give a written folder its name, once all of it has reached the disk."""
    for path in (*partial.iterdir(), partial):
        _sync(path)
    if final.exists():
        final.rename(partial.with_name(f".{final.name}.replaced.partial"))
    partial.rename(final)
    _sync(final.parent)


def _prune(folder: RunFolder, keep: int) -> None:
    """Delete what is older than the `keep` newest checkpoints, and what only the newest one keeps."""
    leftovers = folder.checkpoints.glob(".*.partial")
    for path in (*folder.saved()[:-keep], *leftovers):
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.saved()[:-1]:
        for name in _only_newest(path):
            (path / name).unlink(missing_ok=True)


def _only_newest(path: Path) -> list[str]:
    """The files of the checkpoint `path` that an older one may lack; none where it is damaged."""
    try:
        return list(json.loads((path / MANIFEST).read_text(encoding="utf-8"))["only_newest"])
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _verify(path: Path) -> Checkpoint:
    """The checkpoint in `path`.

    Raises:
        OSError, ValueError, KeyError, TypeError: it is damaged.
        UserError: a newer version of this software wrote it.
    """
    manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    if manifest["format"] > FORMAT:
        problem = f"has format {manifest['format']}, this version reads {FORMAT}"
        raise UserError(f"{path}: {problem}; upgrade pi_incubator")
    if version := FORMAT_VERSIONS.get(manifest["format"]):
        problem = f"was written by pi_incubator {version}, whose format this version does not read"
        raise UserError(f"{path}: {problem}; install that version to use it, or train again")
    for name, sha256 in manifest["files"].items():
        if name in manifest["only_newest"] and not (path / name).exists():
            continue
        if _sha256(path / name) != sha256:
            raise ValueError(f"{name} has another SHA-256 than when it was written")
    return Checkpoint(path, int(manifest["iteration"]), int(manifest["env_steps"]))


def _load(checkpoint: Checkpoint, name: str, part: Part) -> None:
    """Load the part `name`, after checking that every tensor it has now is there in the same form.

    A checkpoint may have more, such as the moments of an optimizer that has not stepped yet here.
    """
    file = checkpoint.path / f"{name}.safetensors"
    fix = "continue with the task, backend, algorithm and network of that run, or set another experiment.name"
    if not file.exists():
        if part.saved == "last":
            log.warning("%s was kept in a newer checkpoint only; continuing with an empty one", file)
            return
        raise UserError(f"{file}: is not in this checkpoint; {fix}")
    state = load_file(file)
    for key, here in part.value.state_dict().items():
        there = state.get(key)
        if there is None or there.shape != here.shape or there.dtype != here.dtype:
            problem = f"has {_describe(there)} for {key!r}, needed is {_describe(here)}"
            raise UserError(f"{file}: {problem}; {fix}")
    part.value.load_state_dict(state)


def _describe(tensor: Tensor | None) -> str:
    return "nothing" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Wait until a file or folder has reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
