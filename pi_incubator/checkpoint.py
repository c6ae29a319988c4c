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

from pi_incubator import faults
from pi_incubator.config import ExperimentConfig
from pi_incubator.distributed import Distributed
from pi_incubator.errors import UserError
from pi_incubator.provenance import config_hash, git_state, library_versions
from pi_incubator.run_folder import RunFolder

FORMAT = 2
FORMAT_VERSIONS = {1: "0.1.0"}
"""The versions of this software that wrote earlier formats, which this one does not read."""
MANIFEST = "manifest.json"
RANDOM = "random"
OTHER_RUN = (
    "continue with the task, backend, algorithm and network of that run, or set another experiment.name"
)
ALONE = Distributed()
LIBRARIES = ("torch", "tensordict", "torchrl", "safetensors", "mujoco", "mujoco-warp", "warp-lang", "jax")

State = dict[str, Tensor]

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
    world_size: int
    """How many processes trained together."""


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
    distributed: Distributed = ALONE,
) -> Path:
    """Write the state of `parts` and of torch's generators; returns the checkpoint's folder.

    All ranks call it, and rank 0 writes.

    Args:
        folder: the run's.
        iteration: the one just completed, counted from 0.
        env_steps: environment steps until now, over all worlds.
        parts: what to save, by name; the names become file names.
        cfg: the experiment, whose hash is recorded.
        keep: newest checkpoints that stay; older ones are deleted once this one is on disk, and lose their
            parts that are `saved` as `last`.
        distributed: the ranks that have parts of their own.

    Raises:
        UserError: it cannot be written; the earlier checkpoints are untouched.
    """
    final = folder.checkpoints / f"iter_{iteration:08d}"
    states = _gather_states(_with_random(parts), distributed)
    if not distributed.is_main:
        return final
    partial = folder.checkpoints / f".{final.name}.partial"
    try:
        faults.reach("save")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        files = {}
        for name, state in states.items():
            file = partial / f"{name}.safetensors"
            save_file(state, file)
            faults.reach("save", "write")
            faults.reach("save", "hash")
            files[file.name] = _sha256(file)
        only_newest = [f"{name}.safetensors" for name in states if _is_only_in_newest(name, parts)]
        manifest = _manifest(iteration, env_steps, cfg, files, only_newest, distributed.world_size)
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        _publish(partial, final)
    except (OSError, SafetensorError) as error:
        fix = "free some space or check the permissions, then run again to continue"
        raise UserError(f"{final}: cannot be written ({error}); {fix}") from error
    _prune(folder, keep)
    return final


def _with_random(parts: Mapping[str, Part]) -> dict[str, Part]:
    """The parts that are saved, and last torch's generators: loading a part may itself draw numbers."""
    saved = {name: part for name, part in parts.items() if part.saved != "never"}
    return saved | {RANDOM: Part(TorchRandom(), per_rank=True)}


def _file_name(name: str, rank: int) -> str:
    """The part `name` of a rank, without the suffix of its file."""
    return f"{name}.rank{rank}" if rank else name


def _part_of(file_name: str) -> str:
    """The part that `_file_name` named."""
    return file_name.partition(".")[0]


def _is_only_in_newest(file_name: str, parts: Mapping[str, Part]) -> bool:
    part = parts.get(_part_of(file_name))
    return part is not None and part.saved == "last"


def _gather_states(parts: Mapping[str, Part], distributed: Distributed) -> dict[str, State]:
    """File name without suffix -> tensors on the CPU, of every rank; on rank 0 alone."""
    if distributed.is_main:
        states = {name: _packed_state(part) for name, part in parts.items()}
    own = {name: _packed_state(part) for name, part in parts.items() if part.per_rank and distributed.rank}
    gathered = distributed.gather(own)
    if not distributed.is_main:
        return {}
    for rank, others in enumerate(gathered):
        states |= {_file_name(name, rank): state for name, state in others.items()}
    return states


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


def restore(folder: RunFolder, parts: Mapping[str, Part], distributed: Distributed = ALONE) -> int:
    """Load the newest undamaged checkpoint into `parts` and torch's generators.

    All ranks call it; rank 0 reads, so the others need no access to the folder.

    Returns:
        The iteration to continue with; 0 when there is no checkpoint.

    Raises:
        UserError: it does not fit `parts`, another number of ranks wrote it, or every checkpoint is damaged.
    """
    found = distributed.broadcast(_newest_for(folder, distributed) if distributed.is_main else None)
    if found is None:
        return 0
    for name, part in _with_random(parts).items():
        states = _read_states(found, name, part, distributed) if distributed.is_main else []
        state = distributed.scatter(states) if part.per_rank else distributed.broadcast(states and states[0])
        if state is not None:
            _load_state(found.path / f"{name}.safetensors", state, part)
    if distributed.is_main:
        _set_damaged_aside(folder, found)
    return found.iteration + 1


def _newest_for(folder: RunFolder, distributed: Distributed) -> Checkpoint | None:
    """The newest undamaged checkpoint, written by as many ranks as there are now."""
    found = latest(folder)
    if found and found.world_size != distributed.world_size:
        problem = f"was written by {found.world_size} processes, and now there are {distributed.world_size}"
        raise UserError(f"{found.path}: {problem}; start as many, or set another experiment.name")
    return found


def _read_states(
    checkpoint: Checkpoint, name: str, part: Part, distributed: Distributed
) -> list[State | None]:
    """The state of a part for every rank; of a common part, one."""
    num_ranks = distributed.world_size if part.per_rank else 1
    files = [checkpoint.path / f"{_file_name(name, rank)}.safetensors" for rank in range(num_ranks)]
    return [_read_state(file, part) for file in files]


def _set_damaged_aside(folder: RunFolder, found: Checkpoint) -> None:
    """Rename checkpoints newer than `found`, or their numbers would outlive good ones."""
    saved = folder.saved()
    for damaged in saved[saved.index(found.path) + 1 :]:
        shutil.rmtree(damaged.with_suffix(".damaged"), ignore_errors=True)
        damaged.rename(damaged.with_suffix(".damaged"))


def load_policy(run: RunFolder | str | Path, policy: HasState) -> Checkpoint:
    """Load the policy of a run's newest undamaged checkpoint; the run may still be going on.

    Raises:
        UserError: the run has no checkpoint, or none that fits `policy`.
    """
    return load_part(run, "policy", policy)


def load_part(run: RunFolder | str | Path, name: str, part: HasState) -> Checkpoint:
    """Load one part of a run's newest undamaged checkpoint; errors as of `load_policy`."""
    found = _newest(run)
    file = found.path / f"{name}.safetensors"
    state = _read_state(file, Part(part))
    assert state is not None
    _load_state(file, state, Part(part))
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


def _packed_state(part: Part) -> State:
    return {key: _packed(value) for key, value in part.value.state_dict().items()}


def _packed(tensor: Tensor) -> Tensor:
    """A copy on the CPU with storage of its own: safetensors refuses views, strides and shared memory."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _manifest(
    iteration: int,
    env_steps: int,
    cfg: ExperimentConfig,
    files: dict[str, str],
    only_newest: list[str],
    world_size: int,
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
        "world_size": world_size,
    }


def _publish(partial: Path, final: Path) -> None:
    """Give a written folder its name, once all of it has reached the disk."""
    for path in (*partial.iterdir(), partial):
        faults.reach("save", "fsync")
        _sync(path)
    if final.exists():
        final.rename(partial.with_name(f".{final.name}.replaced.partial"))
    faults.reach("save", "rename")
    partial.rename(final)
    _sync(final.parent)


def _prune(folder: RunFolder, keep: int) -> None:
    """Delete what is older than the `keep` newest checkpoints, and what only the newest one keeps."""
    faults.reach("save", "prune")
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
    return Checkpoint(
        path, int(manifest["iteration"]), int(manifest["env_steps"]), int(manifest["world_size"])
    )


def _read_state(file: Path, part: Part) -> State | None:
    """What `file` holds; None where an older checkpoint has lost what only the newest keeps."""
    if file.exists():
        return load_file(file)
    if part.saved == "last":
        log.warning("%s was kept in a newer checkpoint only; continuing with an empty one", file)
        return None
    raise UserError(f"{file}: is not in this checkpoint; {OTHER_RUN}")


def _load_state(file: Path, state: State, part: Part) -> None:
    """Load a part, after checking that every tensor it has now is there in the same form.

    A checkpoint may have more, such as the moments of an optimizer that has not stepped yet here. What is
    kept in the newest checkpoint alone, such as a replay buffer, grows while it is filled.
    """
    for key, here in part.value.state_dict().items():
        there = state.get(key)
        any_size = part.saved == "last"
        if there is None or there.dtype != here.dtype or not (any_size or there.shape == here.shape):
            problem = f"has {_describe(there)} for {key!r}, needed is {_describe(here)}"
            raise UserError(f"{file}: {problem}; {OTHER_RUN}")
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
