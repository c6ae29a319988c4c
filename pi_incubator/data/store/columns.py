"""The columns of a store: episodes as Arrow tables, and back.

    frames    a row for each step: `episode`, `frame_index`, observations, `action`, `next_reward`, flags,
              `return_to_go` (the sum of the rewards from this step on), `embedding`
    episodes  a row for each episode: `episode`, `length`, `return`, where it came from, and the
              observations after its last step

Names are those of LeRobot's Lance layout (lerobot#4363), which are those of LeRobotDataset v3.0 with `_` for
every `.`. An episode is in the store if the table of episodes names it. `episode` is a random number, so that
writers need not agree on one.

Letters: S steps, T steps of an episode, D observation width, A actions, E width of an embedding.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa

from pi_incubator.data.datasets.layout import Array, DatasetError, Episode, Group, Manifest

FORMAT = 1
ABOUT = b"pi_incubator.store"
"""Key of the schema's metadata with the manifest and the normalizer, as JSON."""
STATE, PREFIX, FINAL, EMBEDDING = "observation_state", "observation_", "final_", "embedding"
FLAGS = {"next_terminated": "terminated", "next_truncated": "truncated", "next_valid": "valid"}
CLIP = 10.0
"""Standard deviations to which an embedding is clipped."""
LEAST_STD = 1e-6


@dataclass(frozen=True)
class Origin:
    """Where episodes came from."""

    source: str
    """`training`, `evaluation`, `robot` or `import`."""
    run: str = ""
    """Name of the run, or of the file."""
    config_hash: str = ""
    """SHA-256 of the run's settings; empty where there is no run."""


@dataclass(frozen=True)
class About:
    """What all rows of a store have in common."""

    manifest: Manifest
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Of the group that is embedded: E numbers each, fixed when the store is made."""
    group: str = "policy"
    """The observation group that is embedded."""

    def embed(self, observation: Array) -> Array:
        """Raw observations `[..., E]` -> embeddings `[..., E]` float32: normalized, and clipped."""
        normalized = (observation - np.asarray(self.mean)) / np.asarray(self.std)
        embedded: Array = np.clip(normalized, -CLIP, CLIP).astype(np.float32)
        return embedded


def about_of(manifest: Manifest, episodes: Sequence[Episode], path: str) -> About:
    """Of a store in `path` that begins with `episodes`: it normalizes by the moments of their observations.

    Raises:
        DatasetError: a group is pixels, or two groups would share a column.
    """
    columns = [column_of(group) for group in manifest.observations]
    for group, form in manifest.observations.items():
        if form.dtype != "float32":
            problem = f"keeps vectors, and the group {group!r} is {form.dtype}"
            raise DatasetError(path, problem, "keep these steps in a folder (docs/datasets.md)")
        if columns.count(column_of(group)) > 1:
            problem = f"would keep two groups in the column {column_of(group)!r}"
            raise DatasetError(path, problem, f"rename the group {group!r} in the task")
    group = "policy" if "policy" in manifest.observations else next(iter(manifest.observations))
    seen = np.concatenate([episode.observations[group] for episode in episodes])
    seen = seen.reshape(len(seen), -1)
    mean = seen.mean(0, dtype=np.float64)
    std = np.maximum(seen.std(0, dtype=np.float64), LEAST_STD)
    return About(manifest, tuple(mean.tolist()), tuple(std.tolist()), group)


def to_metadata(about: About) -> dict[bytes, bytes]:
    """`about` as metadata of a schema."""
    return {ABOUT: json.dumps({"format": FORMAT} | asdict(about)).encode()}


def from_metadata(metadata: dict[bytes, bytes] | None, path: str) -> About:
    """What `to_metadata` gave.

    Raises:
        DatasetError: the table in `path` is of no store, or of a later version.
    """
    try:
        content = json.loads((metadata or {})[ABOUT])
        if (number := content.pop("format")) != FORMAT:
            raise DatasetError(
                path, f"has format {number}, this version reads {FORMAT}", "upgrade pi_incubator"
            )
        given = content.pop("manifest")
        given["observations"] = {
            name: Group(tuple(form["shape"]), form["dtype"]) for name, form in given["observations"].items()
        }
        for name in ("action_low", "action_high", "joint_names"):
            given[name] = tuple(given[name])
        mean, std = tuple(content["mean"]), tuple(content["std"])
        return About(Manifest(**given), mean, std, content["group"])
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise DatasetError(path, f"is not a store ({error!r})", "name another folder") from None


def column_of(group: str) -> str:
    """The column of an observation group."""
    return STATE if group == "policy" else PREFIX + group.replace(".", "_")


def tables_of(about: About, episodes: Sequence[Episode], origin: Origin) -> tuple[pa.Table, pa.Table]:
    """The rows of `episodes` in both tables, under new random numbers."""
    manifest = about.manifest
    numbers = np.array([secrets.randbits(63) for _ in episodes], np.int64)
    lengths = np.array([len(episode.reward) for episode in episodes])
    joined = {
        name: np.concatenate([getattr(episode, name) for episode in episodes])
        for name in ("action", "reward", *FLAGS.values())
    }
    frame = np.concatenate([np.arange(length) for length in lengths]).astype(np.int32)
    seen = {
        group: np.concatenate([episode.observations[group][:-1] for episode in episodes])
        for group in manifest.observations
    }
    frames = {"episode": pa.array(np.repeat(numbers, lengths)), "frame_index": pa.array(frame)}
    frames["timestamp"] = pa.array((frame / manifest.control_hz).astype(np.float32))
    frames |= {column_of(group): _lists(values) for group, values in seen.items()}
    frames |= {"action": _lists(joined["action"]), "next_reward": pa.array(joined["reward"])}
    frames |= {name: pa.array(joined[ours]) for name, ours in FLAGS.items()}
    frames["next_done"] = pa.array(joined["terminated"] | joined["truncated"])
    to_go = [episode.reward[::-1].cumsum(dtype=np.float64)[::-1].astype(np.float32) for episode in episodes]
    frames["return_to_go"] = pa.array(np.concatenate(to_go))
    frames[EMBEDDING] = _lists(about.embed(seen[about.group].reshape(len(frame), -1)))
    rows = {
        "episode": pa.array(numbers),
        "length": pa.array(lengths),
        "return": pa.array(np.array([returns[0] for returns in to_go], np.float32)),
        "is_complete": pa.array([episode.is_complete for episode in episodes]),
    }
    rows |= {name: pa.array([value] * len(numbers)) for name, value in asdict(origin).items()}
    for group in manifest.observations:
        last = np.stack([episode.observations[group][-1] for episode in episodes])
        rows[FINAL + column_of(group)] = _lists(last)
    metadata = to_metadata(about)
    return (
        pa.table(frames).replace_schema_metadata(metadata),
        pa.table(rows).replace_schema_metadata(metadata),
    )


def episodes_of(about: About, frames: pa.Table, rows: pa.Table) -> list[Episode]:
    """The episodes of `rows` in their order, from frames in any order."""
    names = ["episode", "frame_index", "action", "next_reward", *FLAGS]
    names += [column_of(group) for group in about.manifest.observations]
    columns = {name: array_of(frames, name) for name in names}
    order = np.lexsort((columns["frame_index"], columns["episode"]))
    columns = {name: column[order] for name, column in columns.items()}
    found = []
    for index, number in enumerate(array_of(rows, "episode")):
        start, stop = np.searchsorted(columns["episode"], [number, number + 1])
        observations = {}
        for group, form in about.manifest.observations.items():
            name = column_of(group)
            last = array_of(rows.slice(index, 1), FINAL + name)
            steps = np.concatenate([columns[name][start:stop], last])
            observations[group] = steps.reshape(-1, *form.shape)
        rest = ["action", "next_reward", *FLAGS]
        found.append(Episode(observations, *(columns[name][start:stop] for name in rest)))
    return found


def array_of(table: pa.Table, name: str) -> Array:
    """A column as numpy, `[S]` or `[S, D]`; a column of numbers in one chunk is not copied."""
    column = table[name].combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # of no rows
        column = column.chunk(0) if column.num_chunks else pa.array([], column.type)
    if pa.types.is_fixed_size_list(column.type):
        values: Array = np.asarray(column.flatten()).reshape(len(column), column.type.list_size)
        return values
    if pa.types.is_boolean(column.type):
        return np.asarray(column.to_numpy(zero_copy_only=False))
    return np.asarray(column)


def _lists(values: Array) -> pa.Array:
    """`[S, ...]` as lists of one size."""
    rows = np.ascontiguousarray(values).reshape(len(values), -1)
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
