"""The steps of a dataset as a replay buffer.

Letters: S steps, K shards of this rank, L steps of a shard, D observation width, A actions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from envs_gpu.errors import SettingError
from envs_gpu.vec_env import EnvSpec
from pi_incubator.data.datasets.layout import (
    Array,
    Episode,
    Group,
    Manifest,
    manifest_of,
)
from pi_incubator.data.datasets.source import read_source
from pi_incubator.data.replay.replay import NEXT, OBS
from pi_incubator.data.replay.ring import Ring
from pi_incubator.data.sharded import ShardedRandom

FIELD = "dataset.path"
SAME = "name a dataset of the same task and settings"
RATE_TOLERANCE = 1e-6
"""Relative difference of two control rates that are the same number."""


def load_steps(
    path: str,
    spec: EnvSpec,
    groups: Iterable[str],
    random: ShardedRandom,
    shards: range,
    num_shards: int,
    **options: Any,
) -> Ring:
    """A replay buffer with this rank's share of a dataset, on the device of `spec`.

    The steps of all episodes, one after the other, are cut into as many pieces of L steps as the training has
    shards; fewer steps than shards are left over at the end. The end of an incomplete episode counts as
    truncated: its last observation is known.

    Args:
        path: folder of the dataset, or `store:PATH`; see `datasets.source`.
        spec: of the worlds that the policy is for.
        groups: the observation groups that are learned from.
        random: samples.
        shards: those of this rank, of `num_shards` in all.
        num_shards: of all ranks.
        options: `n_step`, `gamma` and `dtype` of `Ring`.

    Raises:
        SettingError: the dataset is empty, or its steps are of other worlds.
        DatasetError: it is missing or damaged.
    """
    (manifest, episodes), groups = read_source(path), tuple(groups)
    _check_same(path, manifest, spec, groups)
    pieces = [_columns(episode, groups) for episode in episodes]
    length = sum(len(piece["reward"]) for piece in pieces) // num_shards  # L
    if not length:
        raise SettingError(FIELD, path, f"has no step for each of {num_shards} shards", "record some steps")
    steps = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    state = {
        name: torch.from_numpy(np.stack([column[k * length : (k + 1) * length] for k in shards], 1))
        for name, column in steps.items()
    }  # [L, K, ...]
    ring = Ring(length * len(shards), replace(spec, num_envs=len(shards)), groups, random, **options)
    ring.load_state_dict(state | {"count": torch.tensor(length)})
    return ring


def _columns(episode: Episode, groups: Iterable[str]) -> dict[str, Array]:
    """The steps `[T, ...]` of an episode by the names of the replay contract."""
    columns = {name: getattr(episode, name) for name in ("action", "reward", "terminated", "valid")}
    columns["truncated"] = episode.truncated.copy()
    columns["truncated"][-1] |= not episode.terminated[-1]
    for group in groups:
        columns[OBS + group] = episode.observations[group][:-1]
        columns[NEXT + group] = episode.observations[group][1:]
    return columns


def _check_same(path: str, manifest: Manifest, spec: EnvSpec, groups: Iterable[str]) -> None:
    """Check that a dataset holds steps of the task that `spec` describes, in the same units.

    Raises:
        SettingError: the first difference.
    """
    ours = manifest_of(spec)
    if abs(manifest.control_hz - ours.control_hz) <= RATE_TOLERANCE * ours.control_hz:
        ours = replace(ours, control_hz=manifest.control_hz)
    compared: list[tuple[str, object, object]] = [("task", manifest.env, ours.env)]
    compared += [
        (
            f"observation group {group!r}",
            _form(manifest.observations.get(group)),
            _form(ours.observations[group]),
        )
        for group in groups
    ]
    compared += [
        ("action width", manifest.action_dim, ours.action_dim),
        ("control rate in Hz", manifest.control_hz, ours.control_hz),
        *(
            (f"{side} limits of actions", _float32(theirs), _float32(limits))
            for side, theirs, limits in (
                ("lower", manifest.action_low, ours.action_low),
                ("upper", manifest.action_high, ours.action_high),
            )
        ),
    ]
    for what, theirs, needed in compared:
        if theirs != needed:
            problem = f"its {what} is {theirs}, env.name = {spec.name} has {needed}"
            raise SettingError(FIELD, path, problem, SAME)


def _form(group: Group | None) -> str:
    return "missing" if group is None else f"{group.dtype} {list(group.shape)}"


def _float32(numbers: tuple[float, ...]) -> list[float]:
    """`numbers` as a float32 holds them."""
    rounded: list[float] = np.asarray(numbers, np.float32).tolist()
    return rounded
