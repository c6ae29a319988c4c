"""The layout of LeRobotDataset v3.0 (LeRobot, Cadene et al. 2024), without videos.

    meta/info.json                              features with dtype, shape and names; totals; steps per second
    meta/stats.json                             min, max, mean, std and count of each feature
    meta/tasks.parquet                          task -> task_index
    meta/episodes/chunk-000/file-000.parquet    where each episode is; and its last observation, see below
    data/chunk-000/file-000.parquet             a row for each step
    meta/manifest.json                          our manifest, so that a dataset comes back as it was

The layout has no observation after the last step of an episode, so we add it to the table of episodes as
`final/FEATURE`. Without that column, the last step of an episode is left out and its observation is the final
one. A feature of width 1 is a column of numbers, wider ones are columns of lists.

Letters: S steps, T steps of an episode, D observation width, A actions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pi_incubator.data.datasets.layout import Array, DatasetError, Episode, Manifest, whole, write_manifest

INFO, STATS, TASKS = "meta/info.json", "meta/stats.json", "meta/tasks.parquet"
EPISODES, DATA = "meta/episodes/chunk-000/file-000.parquet", "data/chunk-000/file-000.parquet"
VERSION = "v3.0"
STATE, PREFIX, LAST = "observation.state", "observation.", "final/"
FLAGS = {"next.terminated": "terminated", "next.truncated": "truncated", "next.valid": "valid"}
INDICES = ("frame_index", "episode_index", "index", "task_index")
RATE = 1e-9


def is_lerobot(folder: Path) -> bool:
    """Whether `folder` holds such a dataset."""
    return (folder / INFO).is_file()


def write_parquet(table: pa.Table, folder: Path) -> None:
    """Write the steps of a dataset into `folder`, in the format of the layout itself."""
    path = folder / DATA
    path.parent.mkdir(parents=True)
    pq.write_table(table, path)


def write(
    manifest: Manifest,
    episodes: Iterable[Episode],
    folder: Path,
    write_steps: Callable[[pa.Table, Path], None] = write_parquet,
    storage_format: str | None = None,
) -> None:
    """Write a dataset; the group `policy` is `observation.state`, others are `observation.GROUP`.

    Args:
        manifest: of the steps.
        episodes: to write.
        folder: of the dataset; it must not be there.
        write_steps: writes the table of steps into the folder.
        storage_format: what `info.json` calls that; None for Parquet.

    Raises:
        DatasetError: `folder` is there already, or a group is pixels, which the layout keeps as videos.
        OSError: it cannot be written.
    """
    if drawn := [name for name, group in manifest.observations.items() if group.dtype == "uint8"]:
        raise DatasetError(folder, f"the group {drawn[0]!r} is pixels", "export it as minari")
    every = list(episodes)
    if not every:
        raise DatasetError(folder, "there are no episodes to write", "name a source that has some")
    columns = _columns(manifest, every)
    features = {name: _feature(name, column, manifest) for name, column in columns.items()}
    with whole(folder) as partial:
        (partial / EPISODES).parent.mkdir(parents=True)
        write_manifest(manifest, partial / "meta")
        write_steps(_table(columns), partial)
        pq.write_table(_episode_table(manifest, every), partial / EPISODES)
        pd.DataFrame({"task_index": [0]}, index=pd.Index([manifest.env], name="task")).to_parquet(
            partial / TASKS
        )
        stats = {name: _statistics(column) for name, column in columns.items()}
        _write_json(stats, partial / STATS)
        info = _info(manifest, features, len(every), len(columns["index"]))
        _write_json(info | ({"storage_format": storage_format} if storage_format else {}), partial / INFO)


def read(folder: Path) -> Iterator[Episode]:
    """Yield the episodes in their order; numbers become float32, and steps without a reward get 0.

    Raises:
        DatasetError: a file is missing or damaged, or holds videos.
    """
    try:
        features = json.loads((folder / INFO).read_text(encoding="utf-8"))["features"]
        groups = _groups(folder, features)
        steps = pa.concat_tables(pq.read_table(file) for file in sorted((folder / "data").rglob("*.parquet")))
        about = pa.concat_tables(
            pq.read_table(file) for file in sorted((folder / "meta/episodes").rglob("*.parquet"))
        ).to_pylist()
        columns = {name: _array(steps, name) for name in steps.column_names}
        order = np.lexsort((columns["frame_index"], columns["episode_index"]))
        columns = {name: column[order] for name, column in columns.items()}
        numbers = columns["episode_index"]
        bounds = [0, *(np.flatnonzero(np.diff(numbers)) + 1), len(numbers)] if len(numbers) else []
        rows = {row["episode_index"]: row for row in about}
        for start, stop in pairwise(bounds):
            piece = {name: column[start:stop] for name, column in columns.items()}
            yield from _episode(piece, groups, rows[numbers[start]])
    except (OSError, KeyError, ValueError, TypeError, AttributeError, pa.ArrowException) as error:
        raise DatasetError(folder, f"is damaged ({error!r})") from None


def _groups(folder: Path, features: Mapping[str, Any]) -> dict[str, str]:
    """Observation group -> the feature that holds it."""
    groups = {}
    for name, feature in features.items():
        if name.startswith(PREFIX):
            if feature["dtype"] in ("video", "image"):
                raise DatasetError(folder, f"{name} is {feature['dtype']}", "name a dataset of vectors")
            groups["policy" if name == STATE else name.removeprefix(PREFIX)] = name
    if not groups:
        raise DatasetError(folder, f"has no feature that begins with {PREFIX!r}", "name another dataset")
    return groups


def _episode(
    columns: Mapping[str, Array], groups: Mapping[str, str], about: Mapping[str, Any]
) -> Iterator[Episode]:
    """The steps of one episode; none where there is only one without an observation after it."""
    is_whole = all(about.get(LAST + name) is not None for name in groups.values())
    length = len(columns["frame_index"]) - (not is_whole)
    if not length:
        return
    observations = {}
    for group, name in groups.items():
        rows = _vectors(columns[name])
        last = [np.reshape(about[LAST + name], (1, -1)).astype(np.float32)] if is_whole else []
        observations[group] = np.concatenate([rows, *last])
    done = columns.get("next.done", np.zeros(len(columns["frame_index"]), bool))
    rest = {"terminated": done, "truncated": np.zeros_like(done), "valid": np.ones_like(done)}
    rest |= {ours: columns[name] for name, ours in FLAGS.items() if name in columns}
    reward = columns.get("next.reward", columns.get("reward", np.zeros(len(done), np.float32)))
    numbers = (_vectors(columns["action"])[:length], reward.astype(np.float32)[:length])
    yield Episode(observations, *numbers, *(value.astype(bool)[:length] for value in rest.values()))


def _vectors(column: Array) -> Array:
    """`[S]` or `[S, D]` -> `[S, D]` float32."""
    return column.reshape(len(column), -1).astype(np.float32)


def _columns(manifest: Manifest, episodes: list[Episode]) -> dict[str, Array]:
    """The features, `[S]` or `[S, D]`."""
    lengths = [len(episode.reward) for episode in episodes]
    frame = np.concatenate([np.arange(length) for length in lengths])
    columns: dict[str, Array] = {
        _feature_of(group): np.concatenate([episode.observations[group][:-1] for episode in episodes])
        for group in manifest.observations
    }
    joined = {
        name: np.concatenate([getattr(episode, name) for episode in episodes])
        for name in ("action", "reward", "terminated", "truncated", "valid")
    }
    columns |= {"action": joined["action"], "next.reward": joined["reward"]}
    columns["next.done"] = joined["terminated"] | joined["truncated"]
    columns |= {name: joined[ours] for name, ours in FLAGS.items()}
    columns["timestamp"] = (frame / manifest.control_hz).astype(np.float32)
    columns["frame_index"] = frame
    columns["episode_index"] = np.repeat(np.arange(len(episodes)), lengths)
    columns["index"], columns["task_index"] = np.arange(len(frame)), np.zeros(len(frame), np.int64)
    return columns


def _feature_of(group: str) -> str:
    return STATE if group == "policy" else PREFIX + group


def _feature(name: str, column: Array, manifest: Manifest) -> dict[str, Any]:
    """How `info.json` describes a column."""
    shape, names = list(column.shape[1:]) or [1], None
    if name == "action" and len(manifest.joint_names) == manifest.action_dim:
        names = list(manifest.joint_names)
    return {"dtype": str(column.dtype), "shape": shape, "names": names}


def _table(columns: Mapping[str, Array]) -> pa.Table:
    return pa.table({name: _arrow(column) for name, column in columns.items()})


def _arrow(column: Array) -> pa.Array:
    """`[S]` and `[S, 1]` as numbers, `[S, D]` as lists."""
    width, values = int(np.prod(column.shape[1:])), pa.array(column.reshape(-1))
    return values if width == 1 else pa.FixedSizeListArray.from_arrays(values, width)


def _array(table: pa.Table, name: str) -> Array:
    """A column as numpy, `[S]` or `[S, D]`."""
    column = table[name].combine_chunks()
    if pa.types.is_fixed_size_list(column.type) or pa.types.is_list(column.type):
        values: Array = np.asarray(column.flatten()).reshape(len(column), -1)
        return values
    return np.asarray(column)


def _episode_table(manifest: Manifest, episodes: list[Episode]) -> pa.Table:
    lengths = np.array([len(episode.reward) for episode in episodes])
    stop, zeros = lengths.cumsum(), np.zeros(len(episodes), np.int64)
    columns = {
        "episode_index": pa.array(np.arange(len(episodes))),
        "tasks": pa.array([[manifest.env]] * len(episodes)),
        "length": pa.array(lengths),
        "data/chunk_index": pa.array(zeros),
        "data/file_index": pa.array(zeros),
        "dataset_from_index": pa.array(stop - lengths),
        "dataset_to_index": pa.array(stop),
        "meta/episodes/chunk_index": pa.array(zeros),
        "meta/episodes/file_index": pa.array(zeros),
    }
    for group in manifest.observations:
        last = np.stack([episode.observations[group][-1] for episode in episodes])
        columns[LAST + _feature_of(group)] = _arrow(last)
    return pa.table(columns)


def _info(
    manifest: Manifest, features: Mapping[str, Any], num_episodes: int, num_steps: int
) -> dict[str, Any]:
    rate = manifest.control_hz
    return {
        "codebase_version": VERSION,
        "robot_type": manifest.env,
        "total_episodes": num_episodes,
        "total_frames": num_steps,
        "total_tasks": 1,
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": round(rate) if abs(rate - round(rate)) < RATE * rate else rate,
        "splits": {"train": f"0:{num_episodes}"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": None,
        "features": features,
    }


def _statistics(column: Array) -> dict[str, list[float]]:
    numbers = column.reshape(len(column), -1).astype(np.float64)
    found = {name: getattr(numbers, name)(0).tolist() for name in ("min", "max", "mean", "std")}
    return found | {"count": [len(column)]}


def _write_json(content: Mapping[str, Any], path: Path) -> None:
    path.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")
