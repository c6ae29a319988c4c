"""Our layout of a dataset: a folder with a manifest and shards of recorded steps.

    manifest.json             env, observation groups, action limits, control rate: see `Manifest`
    WRITER-000000.safetensors steps, the episodes that they belong to, and the observations after these

A shard holds S steps in E segments. A segment is some consecutive steps of one episode; a long episode has
several segments, in consecutive shards of one writer. Tensors of a shard:

    obs.GROUP        [S, D]  raw, before the step
    action           [S, A]  in the env's units, within its limits
    reward           [S]     float32
    terminated       [S]     bool, the task ended the episode
    truncated        [S]     bool, time ended it
    valid            [S]     bool, false where the world broke
    segment.length   [E]     int64, steps; they add up to S
    segment.episode  [E]     int64, number of the episode, counted by each writer for itself
    final.GROUP      [E, D]  the observation after the last step of the segment, before any reset

An episode is complete where its last step is `terminated` or `truncated`. Discounts are no part of a dataset.
A shard appears under its name when it is whole, so a dataset grows by whole shards.

Letters: S steps, E segments, T steps of an episode, D observation width, A actions.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from envs_gpu.vec_env import EnvSpec
from pi_incubator.errors import UserError

FORMAT = 1
STEPS_OF_SHARD, BYTES_OF_SHARD = 2**17, 2**28
"""Steps, and bytes in memory, of which a recording writes the shard that reaches one of them."""
MANIFEST, SUFFIX = "manifest.json", ".safetensors"
OBS, FINAL = "obs.", "final."
PER_STEP = {"reward": np.float32, "terminated": np.bool_, "truncated": np.bool_, "valid": np.bool_}
AGAIN = "record it again, or restore it from a copy"

Array = NDArray[Any]


class DatasetError(UserError):
    """A dataset that is missing, damaged, or of another form than it says.

    Args:
        path: of the dataset or of a file in it.
        problem: what is wrong.
        fix: what to do.
    """

    def __init__(self, path: str | Path, problem: str, fix: str = AGAIN) -> None:
        self.path, self.problem, self.fix = str(path), problem, fix
        super().__init__(f"{path}: {problem}; {fix}")


@dataclass(frozen=True)
class Group:
    """The form of one observation group."""

    shape: tuple[int, ...]
    """Of one world, such as `(D,)`."""
    dtype: str
    """`float32`, or `uint8` of pixels."""


@dataclass(frozen=True)
class Manifest:
    """What all steps of a dataset have in common."""

    env: str
    """Name of the task."""
    observations: dict[str, Group]
    """Observation group -> its form."""
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    """Limits of the action, one number each; their number is A."""
    control_hz: float
    """Actions per simulated second."""
    max_episode_steps: int
    """Steps after which an episode is truncated."""
    joint_names: tuple[str, ...] = ()
    """The actuated joints, in the order of the action; empty where they are not known."""

    @property
    def action_dim(self) -> int:
        """A."""
        return len(self.action_low)


class Episode(NamedTuple):
    """The steps of one episode; T steps and T + 1 observations."""

    observations: dict[str, Array]
    """Group -> `[T + 1, D]`."""
    action: Array
    """`[T, A]` float32."""
    reward: Array
    """`[T]` float32."""
    terminated: Array
    truncated: Array
    valid: Array
    """`[T]` bool each."""

    @property
    def is_complete(self) -> bool:
        """Whether the recording went on until its end."""
        return bool(self.terminated[-1] or self.truncated[-1])


def manifest_of(spec: EnvSpec) -> Manifest:
    """The manifest of steps of the env that `spec` describes."""
    groups = (*spec.obs_dims, *(("pixels",) if spec.pixels_shape else ()))
    forms = {name: Group(spec.obs_shape(name), str(spec.obs_dtype(name)).split(".")[1]) for name in groups}
    limits, steps = (spec.action_low, spec.action_high), spec.max_episode_steps
    return Manifest(spec.name, forms, *limits, float(spec.control_hz), steps, tuple(spec.joint_names))


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Make `folder` and write its manifest, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{MANIFEST}.{os.getpid()}"
    partial.write_text(json.dumps({"format": FORMAT} | asdict(manifest), indent=2) + "\n", encoding="utf-8")
    partial.replace(folder / MANIFEST)


def read_manifest(folder: Path) -> Manifest:
    """The manifest in `folder`.

    Raises:
        DatasetError: it is missing or damaged, or a later version wrote it.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise DatasetError(folder, f"is no dataset (it has no {MANIFEST})", "name a folder that has one")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if (number := content.pop("format")) != FORMAT:
            problem = f"has format {number}, this version reads {FORMAT}"
            raise DatasetError(path, problem, "upgrade pi_incubator")
        groups = content.pop("observations").items()
        content["observations"] = {name: Group(tuple(form["shape"]), form["dtype"]) for name, form in groups}
        for name in ("action_low", "action_high", "joint_names"):
            content[name] = tuple(content[name])
        return Manifest(**content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(path, f"is damaged ({error!r})") from None


def shards_of(folder: Path, writer: str | None = None) -> list[Path]:
    """The shards in `folder`, of one `writer` or of all, in the order in which each writer wrote them."""
    found = [path for path in folder.glob(f"*{SUFFIX}") if not path.name.startswith(".")]
    return sorted(path for path in found if writer is None or writer_of(path) == writer)


def writer_of(shard: Path) -> str:
    """Who wrote a shard: its name without the number."""
    return shard.stem.rpartition("-")[0]


def write_shard(folder: Path, writer: str, number: int, tensors: Mapping[str, Array]) -> Path:
    """Write one shard, which appears under its name when it is whole.

    Raises:
        OSError: it cannot be written.
    """
    path = folder / f"{writer}-{number:06d}{SUFFIX}"
    partial = folder / f".{path.name}.{os.getpid()}"
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    try:
        save_file(contiguous, partial, metadata={"format": str(FORMAT)})
        os.link(partial, path)  # unlike a rename, it never replaces what another run has written
    finally:
        partial.unlink(missing_ok=True)
    return path


def read_shard(path: Path, manifest: Manifest) -> dict[str, Array]:
    """The tensors of one shard, checked against the manifest.

    Raises:
        DatasetError: it is damaged, or of another form than the manifest says.
    """
    try:
        with safe_open(path, framework="np") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise DatasetError(path, f"is no whole safetensors file ({error})") from None
    expected: dict[str, tuple[tuple[int, ...], Any]] = {}  # name -> shape of a row, dtype
    expected |= {"segment.length": ((), np.int64), "segment.episode": ((), np.int64)}
    expected |= {name: ((), dtype) for name, dtype in PER_STEP.items()}
    expected["action"] = ((manifest.action_dim,), np.float32)
    for name, group in manifest.observations.items():
        for moment in (OBS, FINAL):
            expected[moment + name] = (group.shape, np.dtype(group.dtype).type)
    if missing := expected.keys() - tensors.keys():
        raise DatasetError(path, f"has no {min(missing)!r}")
    lengths = tensors["segment.length"]
    for name, (shape, dtype) in expected.items():
        rows = len(lengths) if name.startswith(("segment.", FINAL)) else int(lengths.sum())
        tensor = tensors[name]
        if tensor.shape != (rows, *shape) or tensor.dtype != dtype:
            has, needed = f"{tensor.dtype} {list(tensor.shape)}", f"{np.dtype(dtype)} {[rows, *shape]}"
            raise DatasetError(path, f"has {name!r} of {has}, and {MANIFEST} says {needed}")
        if tensor.dtype == np.float32 and not np.isfinite(tensor).all():
            raise DatasetError(path, f"{name!r} holds numbers that are not finite")
    return tensors


def read_episodes(folder: Path, manifest: Manifest) -> Iterator[Episode]:
    """Yield the episodes of all writers, those of a writer in the order in which they ended.

    Raises:
        DatasetError: a shard is damaged.
    """
    open_segments: dict[tuple[str, int], list[Episode]] = {}
    num_shards: Counter[str] = Counter()  # of each writer
    for path in shards_of(folder):
        writer = writer_of(path)
        if path.stem != f"{writer}-{num_shards[writer]:06d}":
            raise DatasetError(path, f"shard {num_shards[writer]} of {writer!r} is missing before it")
        num_shards[writer] += 1
        tensors = read_shard(path, manifest)
        for number, segment in _segments(tensors, manifest):
            segments = open_segments.setdefault((writer, number), [])
            segments.append(segment)
            if segment.is_complete:
                yield join(open_segments.pop((writer, number)))
    for segments in open_segments.values():
        yield join(segments)


def join(segments: list[Episode]) -> Episode:
    """Consecutive segments of one episode as one; the last observation of one is the first of the next."""
    if len(segments) == 1:
        return segments[0]
    observations = {
        group: np.concatenate([*(one.observations[group][:-1] for one in segments[:-1]), last])
        for group, last in segments[-1].observations.items()
    }
    rest = zip(*(segment[1:] for segment in segments), strict=True)
    return Episode(observations, *(np.concatenate(parts) for parts in rest))


def _segments(tensors: Mapping[str, Array], manifest: Manifest) -> Iterator[tuple[int, Episode]]:
    """Yield the number of the episode and the steps of each segment of a shard."""
    stop = 0
    for index, length in enumerate(tensors["segment.length"]):
        start, stop = stop, stop + int(length)
        observations = {
            name: np.concatenate((tensors[OBS + name][start:stop], tensors[FINAL + name][index : index + 1]))
            for name in manifest.observations
        }
        names = ("action", "reward", "terminated", "truncated", "valid")
        yield (
            int(tensors["segment.episode"][index]),
            Episode(observations, *(tensors[name][start:stop] for name in names)),
        )


def write_dataset(
    manifest: Manifest, episodes: Iterable[Episode], folder: Path, writer: str, source: Path
) -> None:
    """Write whole episodes as a dataset of one writer; nothing is left where that fails.

    Args:
        manifest: of the dataset.
        episodes: to write, with T >= 1 steps each.
        folder: of the dataset; it must not be there.
        writer: names the shards.
        source: what the episodes were read from; errors name it.

    Raises:
        DatasetError: there are no episodes, or one is of another form than the manifest says.
        OSError: it cannot be written.
    """
    with whole(folder) as partial:
        write_manifest(manifest, partial)
        waiting: list[Episode] = []
        num_shards = num_episodes = 0

        def flush() -> None:
            nonlocal num_shards, num_episodes
            write_shard(partial, writer, num_shards, shard_tensors(waiting, num_episodes))
            num_shards, num_episodes = num_shards + 1, num_episodes + len(waiting)
            waiting.clear()

        for episode in episodes:
            if not len(episode.reward):
                raise DatasetError(source, "an episode has no steps", "leave it out")
            waiting.append(episode)
            if sum(len(one.reward) for one in waiting) >= STEPS_OF_SHARD:
                flush()
        if waiting:
            flush()
        if not num_episodes:
            raise DatasetError(source, "there are no episodes in it", "name a source that has some")
        for shard in shards_of(partial):
            try:
                read_shard(shard, manifest)
            except DatasetError as error:  # the shard is about to be deleted
                raise DatasetError(source, error.problem, error.fix) from None


@contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` to write to, which becomes `folder` at the end and is deleted on an error.

    Raises:
        DatasetError: `folder` is there already, or cannot be made.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        is_there = folder.exists()
        if not is_there:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
    except OSError as error:
        raise DatasetError(folder, f"cannot be made ({error.strerror})", "name another folder") from None
    if is_there:
        raise DatasetError(folder, "is there already", "name a new folder")
    try:
        yield partial
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def shard_tensors(episodes: list[Episode], first_number: int = 0) -> dict[str, Array]:
    """The tensors of a shard that holds whole `episodes`, numbered from `first_number`."""
    tensors: dict[str, Array] = {
        "segment.length": np.array([len(episode.reward) for episode in episodes], np.int64),
        "segment.episode": np.arange(first_number, first_number + len(episodes), dtype=np.int64),
    }
    for name in ("action", "reward", "terminated", "truncated", "valid"):
        tensors[name] = np.concatenate([getattr(episode, name) for episode in episodes])
    for group in episodes[0].observations:
        tensors[OBS + group] = np.concatenate([episode.observations[group][:-1] for episode in episodes])
        tensors[FINAL + group] = np.stack([episode.observations[group][-1] for episode in episodes])
    return tensors
