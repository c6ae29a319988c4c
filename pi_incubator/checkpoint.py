"""What a run saves and continues from: the parts of an algorithm, as files of a checkpoint.

`checkpoint_files` describes the files. A checkpoint is copied first, which is quick, and can then be written
beside training. Only what is as large as a replay buffer is not copied: training waits until it is written.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save_file
from torch import Tensor, nn

from pi_incubator import faults
from pi_incubator.checkpoint_files import (
    FORMAT,
    MANIFEST,
    Checkpoint,
    checkpoint_name,
    latest,
    manifest_text,
    prune,
    publish,
    read_newest,
    set_damaged_aside,
    sha256_of,
)
from pi_incubator.config import ExperimentConfig
from pi_incubator.distributed import Distributed
from pi_incubator.errors import StateError, UserError
from pi_incubator.previous import forget_previous
from pi_incubator.provenance import config_hash, git_state, library_versions
from pi_incubator.run_folder import RunFolder
from pi_incubator.saved_state import load_module, set_generator

RANDOM = "random"
POLICY = "policy"
OTHER_RUN = (
    "continue with the device, task, backend, algorithm and network of that run, or set another "
    "experiment.name"
)
ALONE = Distributed()
LIBRARIES = ("torch", "tensordict", "torchrl", "safetensors", "mujoco", "mujoco-warp", "warp-lang", "jax")

State = dict[str, Tensor]

log = logging.getLogger(__name__)


class HasState(Protocol):
    """Whatever can be saved as named tensors and continue from them.

    `load_state_dict` gets tensors of the types and shapes that `state_dict` has, and raises `StateError`
    where it cannot continue from them.
    """

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
    is_learned: bool = False
    """Whether it is what training is for, such as a critic, and not the state of a training, such as its
    worlds: a run that starts from another one (`checkpoint.from`) takes it where it fits."""
    any_size: bool = False
    """Whether its tensors may have another size than here, such as a replay buffer that is being filled."""
    is_large: bool = False
    """Whether a copy could exceed the memory, as of a replay buffer: training waits until it is written."""
    may_be_missing: bool = False
    """Whether a checkpoint without it can be continued, because it starts anew, such as a caller's hook."""


class TorchRandom:
    """torch's default generators, on the CPU and on this process's CUDA device, if it uses one."""

    def state_dict(self) -> dict[str, Tensor]:
        state = {"cpu": torch.get_rng_state()}
        return state | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_initialized() else {})

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        set_generator(torch.set_rng_state, state["cpu"])
        if "cuda" in state and torch.cuda.is_initialized():
            set_generator(torch.cuda.set_rng_state, state["cuda"])


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint will hold: copies, so that training can go on, and what is large itself."""

    iteration: int
    env_steps: int
    states: dict[str, State]
    """File name without suffix -> tensors on the CPU."""
    only_newest: tuple[str, ...]
    """Names of `states` that older checkpoints lose."""
    not_copied: tuple[str, ...]
    """Names of `states` that training will change: `begin` writes them."""
    world_size: int


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
    snapshot = take_snapshot(iteration, env_steps, parts, distributed)
    if snapshot is None:
        return folder.checkpoints / checkpoint_name(iteration)
    begin(folder, snapshot)
    return finish(folder, snapshot, cfg, keep)


class BackgroundSaver:
    """Copies what a checkpoint holds, and writes it in a thread while training goes on.

    What is large is written first, without a copy, and training waits for that.

    At most one checkpoint is being written; the next one waits for it. The copies of what every checkpoint
    holds are made in the same memory each time, which is several times faster than in new memory.

    Args:
        folder: the run's.
        parts: what is saved.
        cfg: the experiment; reads `checkpoint.keep`.
        distributed: the ranks, all of which call `save`.
    """

    def __init__(
        self,
        folder: RunFolder,
        parts: Mapping[str, Part],
        cfg: ExperimentConfig,
        distributed: Distributed = ALONE,
    ) -> None:
        self._folder, self._parts, self._cfg, self._distributed = folder, parts, cfg, distributed
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[Path] | None = None
        self._memory: dict[str, State] = {}
        if distributed.is_main:
            always = {
                name: part.value.state_dict()
                for name, part in parts.items()
                if part.saved == "always" and not part.is_large
            }
            self._new_memory = self._pool.submit(_memory_for, always)

    def save(self, iteration: int, env_steps: int) -> None:
        """Copy the state of the parts, and begin to write it.

        Args:
            iteration: the one just completed, counted from 0.
            env_steps: environment steps until now, over all worlds.

        Raises:
            UserError: the checkpoint before it, or what is large, could not be written.
        """
        self.wait()
        if self._distributed.is_main and not self._memory:
            self._memory = self._new_memory.result()
        snapshot = take_snapshot(iteration, env_steps, self._parts, self._distributed, self._memory)
        if snapshot is not None:
            self._memory = {
                name: state
                for name, state in snapshot.states.items()
                if name not in snapshot.only_newest and not _is_large(name, self._parts)
            }
            begin(self._folder, snapshot)
            keep = self._cfg.checkpoint.keep
            self._writing = self._pool.submit(finish, self._folder, snapshot, self._cfg, keep)

    @property
    def has_failed(self) -> bool:
        """Whether the last checkpoint could not be written; `wait` says why."""
        writing = self._writing
        return writing is not None and writing.done() and writing.exception() is not None

    def wait(self) -> None:
        """Wait until the last checkpoint is on disk.

        Raises:
            UserError: it could not be written; the earlier checkpoints are untouched.
        """
        if self._writing is not None:
            writing = self._writing
            writing.exception()  # waits; an interrupt leaves it to be waited for again
            self._writing = None
            writing.result()

    def close(self) -> None:
        """Wait, and end the thread; a checkpoint that could not be written is a warning."""
        try:
            self.wait()
        except UserError as error:
            log.warning("%s", error)
        finally:
            self._pool.shutdown()


def take_snapshot(
    iteration: int,
    env_steps: int,
    parts: Mapping[str, Part],
    distributed: Distributed = ALONE,
    memory: Mapping[str, State] | None = None,
) -> Snapshot | None:
    """The state of `parts` and of torch's generators, of all ranks; None on ranks other than 0.

    Args:
        iteration: the one just completed, counted from 0.
        env_steps: environment steps until now, over all worlds.
        parts: what to save, by name.
        distributed: the ranks, all of which call it.
        memory: copies that are not needed any more, and whose memory can be used.
    """
    states = _gather_states(_with_random(parts), distributed, memory or {})
    if not distributed.is_main:
        return None
    only_newest = tuple(name for name in states if _is_only_in_newest(name, parts))
    not_copied = tuple(name for name, part in parts.items() if name in states and part.is_large)
    return Snapshot(iteration, env_steps, states, only_newest, not_copied, distributed.world_size)


def begin(folder: RunFolder, snapshot: Snapshot) -> None:
    """Write what a snapshot has no copy of, if there is anything.

    Raises:
        UserError: it cannot be written; the earlier checkpoints are untouched.
    """
    if not snapshot.not_copied:
        return
    final, partial = _places(folder, snapshot)
    with _writing_to(final):
        _make_empty(partial)
        for name in snapshot.not_copied:
            save_file(snapshot.states[name], partial / f"{name}.safetensors")
            faults.reach("save", "write")


def finish(folder: RunFolder, snapshot: Snapshot, cfg: ExperimentConfig, keep: int) -> Path:
    """Write the rest of a checkpoint after `begin`; arguments, result and errors as of `save`."""
    final, partial = _places(folder, snapshot)
    with _writing_to(final):
        if not snapshot.not_copied:
            _make_empty(partial)
        files = {}
        for name, state in snapshot.states.items():
            file = partial / f"{name}.safetensors"
            if name not in snapshot.not_copied:
                save_file(state, file)
                faults.reach("save", "write")
            faults.reach("save", "hash")
            files[file.name] = sha256_of(file)
        text = manifest_text(_manifest(snapshot, cfg, files))
        (partial / MANIFEST).write_text(text, encoding="utf-8")
        publish(partial, final)
    try:
        prune(folder, keep)
        forget_previous(folder)
    except OSError as error:
        log.warning("older checkpoints of %s cannot be deleted (%s)", folder.path, error)
    return final


def _places(folder: RunFolder, snapshot: Snapshot) -> tuple[Path, Path]:
    """The folder of a checkpoint, and the one that it has while it is being written."""
    final = folder.checkpoints / checkpoint_name(snapshot.iteration)
    return final, final.with_name(f".{final.name}.partial")


def _make_empty(partial: Path) -> None:
    faults.reach("save")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)


@contextmanager
def _writing_to(final: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        fix = "free some space or check the permissions, then run again to continue"
        raise UserError(f"{final}: cannot be written ({error}); {fix}") from error


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


def _is_large(file_name: str, parts: Mapping[str, Part]) -> bool:
    part = parts.get(_part_of(file_name))
    return part is not None and part.is_large


def _is_only_in_newest(file_name: str, parts: Mapping[str, Part]) -> bool:
    part = parts.get(_part_of(file_name))
    return part is not None and part.saved == "last"


def _gather_states(
    parts: Mapping[str, Part], distributed: Distributed, memory: Mapping[str, State]
) -> dict[str, State]:
    """File name without suffix -> tensors on the CPU, of every rank; on rank 0 alone.

    They are copies, but for what is large on rank 0 and on the CPU.
    """
    if distributed.is_main:
        states = {name: _saved_state(part, memory.get(name, {})) for name, part in parts.items()}
    own = {
        name: _copied_state(part, {}) for name, part in parts.items() if part.per_rank and distributed.rank
    }
    gathered = distributed.gather(own)
    if not distributed.is_main:
        return {}
    for rank, others in enumerate(gathered):
        states |= {_file_name(name, rank): state for name, state in others.items()}
    return states


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
        set_damaged_aside(folder, found)
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
    names = [f"{_file_name(name, rank)}.safetensors" for rank in range(num_ranks)]
    return [_read_state(checkpoint, name, part) for name in names]


@dataclass(frozen=True)
class Pinned:
    """Parts of one checkpoint, read at once: training may delete its files meanwhile."""

    checkpoint: Checkpoint
    states: Mapping[str, State]
    """Name of the part -> tensors on the CPU; without those that the checkpoint does not have."""

    def load(self, name: str, part: HasState) -> None:
        """Load the part `name`.

        Raises:
            UserError: the checkpoint does not have it, or it does not fit.
        """
        file = self.checkpoint.path / f"{name}.safetensors"
        if name not in self.states:
            raise UserError(f"{file}: is not in this checkpoint; {OTHER_RUN}")
        _load_state(file, self.states[name], Part(part))


def pin(run: RunFolder | str | Path, names: tuple[str, ...] = (POLICY,)) -> Pinned:
    """Parts of a run's newest undamaged checkpoint; the run may still be going on.

    Raises:
        UserError: the run has no checkpoint, or every one is damaged.
    """
    folder = run if isinstance(run, RunFolder) else RunFolder(run)
    found, contents = read_newest(folder, [f"{name}.safetensors" for name in names])
    states = {}
    for file, content in contents.items():
        with _reading_tensors(found.path / file):
            states[_part_of(file)] = load(content)
    return Pinned(found, states)


def load_policy(run: RunFolder | str | Path, policy: HasState) -> Checkpoint:
    """Load the policy of a run's newest undamaged checkpoint; the run may still be going on.

    Returns:
        The checkpoint that the policy is from.

    Raises:
        UserError: the run has no checkpoint, or none that fits `policy`.
    """
    pinned = pin(run)
    pinned.load(POLICY, policy)
    return pinned.checkpoint


def _saved_state(part: Part, memory: State) -> State:
    """A copy, or where the part is large its tensors themselves."""
    if not part.is_large:
        return _copied_state(part, memory)
    return {key: value.detach().cpu() for key, value in part.value.state_dict().items()}


def _copied_state(part: Part, memory: State) -> State:
    return {key: _copied(value, memory.get(key)) for key, value in part.value.state_dict().items()}


def _memory_for(states: Mapping[str, State]) -> dict[str, State]:
    """Memory for copies of `states` that the operating system has given already, which takes it time."""
    return {
        name: {key: torch.empty(value.shape, dtype=value.dtype).zero_() for key, value in state.items()}
        for name, state in states.items()
    }


def _copied(tensor: Tensor, memory: Tensor | None) -> Tensor:
    """A copy on the CPU with storage of its own: safetensors refuses views, strides and shared memory."""
    if memory is None or memory.shape != tensor.shape or memory.dtype != tensor.dtype:
        memory = torch.empty(tensor.shape, dtype=tensor.dtype)
    return memory.copy_(tensor.detach())


def _manifest(snapshot: Snapshot, cfg: ExperimentConfig, files: dict[str, str]) -> dict[str, Any]:
    git = git_state()
    return {
        "format": FORMAT,
        "iteration": snapshot.iteration,
        "env_steps": snapshot.env_steps,
        "config_sha256": config_hash(cfg),
        "git_commit": git and git.commit,
        "git_dirty": git and git.dirty,
        "libraries": library_versions(LIBRARIES),
        "files": files,
        "only_newest": [f"{name}.safetensors" for name in snapshot.only_newest],
        "world_size": snapshot.world_size,
    }


def _read_state(checkpoint: Checkpoint, name: str, part: Part) -> State | None:
    """What the file `name` holds; None where an older checkpoint has lost what only the newest keeps.

    A file that the manifest does not list has not been verified, and is not opened.
    """
    file = checkpoint.path / name
    if name in checkpoint.files and file.exists():
        with _reading_tensors(file):
            return load_file(file)
    if part.saved == "last":
        log.warning("%s was kept in a newer checkpoint only; continuing with an empty one", file)
        return None
    if part.may_be_missing:
        log.warning("%s is not in this checkpoint; it starts anew", file)
        return None
    raise UserError(f"{file}: is not in this checkpoint; {OTHER_RUN}")


def _load_state(file: Path, state: State, part: Part) -> None:
    """Load a part, after checking that every tensor it has now is there in the same form.

    A checkpoint may have more, such as the moments of an optimizer that has not stepped yet here.
    """
    for key, here in part.value.state_dict().items():
        there = state.get(key)
        if there is None or there.dtype != here.dtype or not (part.any_size or there.shape == here.shape):
            problem = f"has {describe(there)} for {key!r}, needed is {describe(here)}"
            raise UserError(f"{file}: {problem}; {OTHER_RUN}")
    try:
        if isinstance(part.value, nn.Module):
            load_module(part.value, state)
        else:
            part.value.load_state_dict(state)
    except StateError as error:
        raise UserError(f"{file}: cannot be continued ({_in_short(str(error))}); {OTHER_RUN}") from error


@contextmanager
def _reading_tensors(file: Path) -> Iterator[None]:
    """Explain a file that is as it was written, and yet no file of tensors."""
    try:
        yield
    except (SafetensorError, RuntimeError, ValueError, LookupError, TypeError, OSError) as error:
        fix = "restore the checkpoint from a copy, or train again with another experiment.name"
        raise UserError(
            f"{file}: is no file of tensors ({_in_short(f'{type(error).__name__}: {error}')}); {fix}"
        ) from error


def _in_short(text: str) -> str:
    """A text in one line of a readable length."""
    text = " ".join(text.split())
    return text if len(text) <= 200 else text[:197] + "..."


def describe(tensor: Tensor | None) -> str:
    """Type and shape of a tensor, in words."""
    return "nothing" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
