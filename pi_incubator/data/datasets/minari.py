"""Minari's layout of a dataset, in HDF5 (Younis et al. 2024, minari 0.5).

    data/main_data.hdf5   a group `episode_N` for each episode: observations, actions, rewards, terminations,
                          truncations, and infos/valid, which is our own
    data/metadata.json    spaces, totals, and the library's version of the layout
    data/manifest.json    our manifest, so that a dataset comes back as it was

Letters: T steps of an episode, D observation width, A actions.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pi_incubator.data.datasets.layout import (
    Array,
    DatasetError,
    Episode,
    Group,
    Manifest,
    whole,
    write_manifest,
)

MAIN_FILE, METADATA_FILE = "data/main_data.hdf5", "data/metadata.json"
VERSION = "0.5.4"
"""Of the library whose layout is written."""
POLICY = "policy"
"""The observation group of a dataset whose observations have no names."""


def is_minari(folder: Path) -> bool:
    """Whether `folder` holds such a dataset."""
    return (folder / METADATA_FILE).is_file()


def write(manifest: Manifest, episodes: Iterable[Episode], folder: Path) -> None:
    """Write a dataset; a single group `policy` is a `Box`, several groups are a `Dict` of boxes.

    Raises:
        DatasetError: `folder` is there already.
        OSError: it cannot be written.
    """
    names, num_steps, num_episodes = list(manifest.observations), 0, 0
    with whole(folder) as partial:
        write_manifest(manifest, partial / "data")
        with h5py.File(partial / MAIN_FILE, "w", track_order=True) as file:
            for number, episode in enumerate(episodes):
                group = file.create_group(f"episode_{number}")
                length = len(episode.reward)
                group.attrs.update({"id": number, "total_steps": length})
                if names == [POLICY]:
                    group["observations"] = episode.observations[POLICY]
                else:
                    for name in names:
                        group[f"observations/{name}"] = episode.observations[name]
                group["actions"], group["rewards"] = episode.action, episode.reward
                group["terminations"], group["truncations"] = episode.terminated, episode.truncated
                # Infos have an entry for the reset too.
                group["infos/valid"] = np.concatenate(([True], episode.valid))
                num_steps, num_episodes = num_steps + length, num_episodes + 1
        metadata = {
            "total_episodes": num_episodes,
            "total_steps": num_steps,
            "data_format": "hdf5",
            "jpeg_encoding": False,
            "dataset_id": f"{manifest.env}/{folder.name}-v0",
            "minari_version": VERSION,
            "observation_space": json.dumps(_observation_space(manifest)),
            "action_space": json.dumps(_box(manifest.action_low, manifest.action_high)),
            "dataset_size": round((partial / MAIN_FILE).stat().st_size / 1e6, 1),
        }
        (partial / METADATA_FILE).write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")


def read(folder: Path) -> Iterator[Episode]:
    """Yield the episodes in their order; numbers become float32.

    Raises:
        DatasetError: the file is damaged, or holds what is no vector of numbers.
    """
    path = folder / MAIN_FILE
    try:
        total = int(json.loads((folder / METADATA_FILE).read_text(encoding="utf-8"))["total_episodes"])
        with h5py.File(path) as file:
            for number in range(total):
                yield _episode(path, file[f"episode_{number}"])
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise DatasetError(path, f"is damaged ({error!r})") from None


def _episode(path: Path, group: Any) -> Episode:
    stored = group["observations"]
    named = {name: stored[name] for name in stored} if isinstance(stored, h5py.Group) else {POLICY: stored}
    length = len(group["rewards"])
    for name, one in named.items():
        if not isinstance(one, h5py.Dataset) or len(one) != length + 1:
            problem = f"{group.name} has no {length + 1} arrays of observations {name!r}"
            raise DatasetError(path, problem, "name another dataset")
    if not isinstance(group["actions"], h5py.Dataset) or group["actions"].ndim != 2:
        raise DatasetError(path, f"the actions of {group.name} are no vectors", "name another dataset")
    valid = group["infos/valid"][1:] if "infos/valid" in group else np.ones(length, bool)
    return Episode(
        {name: _numbers(value[()]) for name, value in named.items()},
        np.asarray(group["actions"][()], np.float32),
        np.asarray(group["rewards"][()], np.float32),
        np.asarray(group["terminations"][()], bool),
        np.asarray(group["truncations"][()], bool),
        np.asarray(valid, bool),
    )


def _numbers(value: Array) -> Array:
    """Observations as a dataset of ours holds them."""
    return value if value.dtype == np.uint8 else value.astype(np.float32)


def _observation_space(manifest: Manifest) -> dict[str, Any]:
    spaces = {name: _unbounded(group) for name, group in manifest.observations.items()}
    return spaces[POLICY] if list(spaces) == [POLICY] else {"type": "Dict", "subspaces": spaces}


def _unbounded(group: Group) -> dict[str, Any]:
    """The space of an observation group, as Minari writes it."""
    limits = (0, 255) if group.dtype == "uint8" else (-np.inf, np.inf)
    low, high = (np.full(group.shape, limit).tolist() for limit in limits)
    return _box(low, high, group.shape, group.dtype)


def _box(low: Any, high: Any, shape: tuple[int, ...] | None = None, dtype: str = "float32") -> dict[str, Any]:
    shape = (len(low),) if shape is None else shape
    return {"type": "Box", "dtype": dtype, "shape": list(shape), "low": list(low), "high": list(high)}
