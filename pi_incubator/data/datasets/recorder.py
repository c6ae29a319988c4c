"""Steps of worlds are written into a dataset while a policy acts in them.

Letters: T steps, N worlds, A actions, E segments.
"""

from __future__ import annotations

import errno
import math
import os
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from envs_gpu.errors import SettingError
from envs_gpu.vec_env import EnvSpec, StepResult
from pi_incubator.data.datasets.layout import (
    BYTES_OF_SHARD,
    FINAL,
    MANIFEST,
    OBS,
    PER_STEP,
    STEPS_OF_SHARD,
    Array,
    manifest_of,
    read_manifest,
    shards_of,
    write_manifest,
    write_shard,
)
from pi_incubator.errors import UserError
from pi_incubator.saved_state import count_of

FIELD = "training.record"
_PREFIX = "record."

_T = TypeVar("_T")


class Recorder:
    """Collects the steps of N worlds and writes them as shards of one writer.

    Args:
        folder: of the dataset; it is made, or the steps are added to what is there.
        writer: names the shards, `NAME-RANK`.
        spec: of the worlds.
        continues: whether the writer may have shards there already; `load_state_dict` says which count.
        field: the setting that names the folder, for messages.

    Raises:
        SettingError: the folder has steps of other worlds, or shards of this writer, or cannot be written.
    """

    def __init__(
        self, folder: Path, writer: str, spec: EnvSpec, continues: bool = False, field: str = FIELD
    ) -> None:
        self._folder, self._writer, self._spec = folder, writer, spec
        self.groups = tuple(manifest_of(spec).observations)
        """The observation groups that are recorded."""
        self._check(field, continues)
        self._rows: list[dict[str, Tensor]] = []  # of each step, tensors [N, ...]
        self._rows_of_shard = math.ceil(most_steps_in_memory(spec) / spec.num_envs)
        self._current = np.full(spec.num_envs, -1, np.int64)  # [N], the open episode; -1: none
        self._num_episodes = self._num_shards = 0
        self._low, self._high = (
            torch.tensor(limit, device=spec.device) for limit in (spec.action_low, spec.action_high)
        )

    def add(self, obs: dict[str, Tensor], action: Tensor, result: StepResult) -> None:
        """Keep one step: the groups before it, the action clipped to its limits, and its result."""
        valid = ~result.broken
        action = torch.where(valid.unsqueeze(-1), action, 0.0)
        row = {
            "action": action.clamp(self._low, self._high).float(),
            "reward": result.reward.float().clone(),
            "terminated": result.terminated.clone(),
            "truncated": result.truncated.clone(),
            "valid": valid,
        }
        row |= {OBS + group: value for group, value in obs.items()}
        row |= {FINAL + group: result.final_obs[group].clone() for group in obs}
        self._rows.append(row)
        if len(self._rows) >= self._rows_of_shard:
            self.flush()

    def end_episodes(self) -> None:
        """End all open episodes, because something else than a step changes the states of the worlds."""
        self.flush()
        self._current.fill(-1)

    def flush(self) -> None:
        """Write what waits in memory as one shard.

        Raises:
            UserError: it cannot be written.
        """
        if not self._rows:
            return
        tensors = self._shard()
        try:
            if not (self._folder / MANIFEST).is_file():
                write_manifest(manifest_of(self._spec), self._folder)
            write_shard(self._folder, self._writer, self._num_shards, tensors)
        except OSError as error:
            is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            fix = "free some space" if is_full else "check the folder, or name another one"
            raise UserError(f"{self._folder}: cannot be written ({error}); {fix}") from None
        self._num_shards += 1
        self._rows.clear()

    def state_dict(self) -> dict[str, Tensor]:
        """Where the recording is; what waits in memory is written before."""
        self.flush()
        numbers = {"num_episodes": self._num_episodes, "num_shards": self._num_shards}
        state = {name: torch.tensor(number) for name, number in numbers.items()}
        return state | {"current": torch.from_numpy(self._current.copy())}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from what `state_dict` gave; shards that were written later are deleted."""
        self._num_episodes, self._num_shards = count_of(state["num_episodes"]), count_of(state["num_shards"])
        self._current[:] = state["current"].cpu().numpy()
        self._rows.clear()
        for shard in shards_of(self._folder, self._writer)[self._num_shards :]:
            shard.unlink()

    def _check(self, field: str, continues: bool) -> None:
        folder = self._folder
        if reason := _why_not_writable(folder):
            problem = f"cannot be written ({reason})"
            raise SettingError(field, str(folder), problem, "name another folder")
        has_manifest = (folder / MANIFEST).is_file()
        if not continues and shards_of(folder, self._writer):
            problem = f"has steps of {self._writer.rpartition('-')[0]!r} already"
            fix = "name another folder, or record a run with another name"
        elif has_manifest and read_manifest(folder) != manifest_of(self._spec):
            problem, fix = f"has steps of other worlds (see its {MANIFEST})", "name another folder"
        elif not has_manifest and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            problem, fix = "is there, and is no dataset", "name another folder"
        else:
            return
        raise SettingError(field, str(folder), problem, fix)

    def _shard(self) -> dict[str, Array]:
        """The steps that wait, world by world, as the tensors of a shard."""
        num_steps, num_worlds = len(self._rows), self._spec.num_envs
        stacked = {
            name: torch.stack([row[name] for row in self._rows], 1).flatten(0, 1).cpu().numpy()
            for name in self._rows[0]
        }  # [N * T, ...]
        done = (stacked["terminated"] | stacked["truncated"]).reshape(num_worlds, num_steps)
        is_last = done.copy()
        is_last[:, -1] = True
        last = np.flatnonzero(is_last)  # [E]
        tensors = {name: value for name, value in stacked.items() if not name.startswith(FINAL)}
        tensors |= {name: value[last] for name, value in stacked.items() if name.startswith(FINAL)}
        tensors["segment.length"] = np.diff(last, prepend=-1).astype(np.int64)
        # A segment may not reach over two worlds: the last step of each world is the last of a segment.
        tensors["segment.episode"] = self._number(last, done)
        return tensors

    def _number(self, last: Array, done: Array) -> Array:
        """The episodes of the segments `[E]` that end at `last`, where `done` `[N, T]` ends episodes."""
        num_steps, numbers = done.shape[1], np.empty(len(last), np.int64)
        for index, place in enumerate(last):
            world = place // num_steps
            if self._current[world] < 0:
                self._current[world] = self._num_episodes
                self._num_episodes += 1
            numbers[index] = self._current[world]
            if done.flat[place]:
                self._current[world] = -1
        return numbers


def bytes_per_step(spec: EnvSpec) -> int:
    """What a recorded step of one world takes in memory: observations before and after it, and the rest."""
    observed = sum(
        math.prod(group.shape) * np.dtype(group.dtype).itemsize
        for group in manifest_of(spec).observations.values()
    )
    rest = sum(np.dtype(dtype).itemsize for dtype in PER_STEP.values())
    return 2 * observed + np.dtype(np.float32).itemsize * spec.action_dim + rest


def most_steps_in_memory(spec: EnvSpec) -> int:
    """Steps of all worlds together that wait before they are written, rounded down."""
    return min(STEPS_OF_SHARD, max(1, BYTES_OF_SHARD // bytes_per_step(spec)))


def _why_not_writable(folder: Path) -> str | None:
    """Why nothing can be written to `folder`, which need not be there yet; None where it can."""
    place = folder.absolute()
    try:
        while not place.exists():
            place = place.parent
    except OSError as error:
        return str(error.strerror)
    if not place.is_dir():
        return f"{place} is no folder"
    return None if os.access(place, os.W_OK | os.X_OK) else f"{place} does not permit it"


def recorded(env: _T, recorder: Recorder) -> _T:
    """`env` (see `envs_gpu.vec_env`), whose steps are also given to `recorder`."""
    return cast(_T, _RecordedEnv(env, recorder))


class _RecordedEnv:
    """An env whose checkpoints also hold the state of the recorder; all else is that of the env within."""

    def __init__(self, env: Any, recorder: Recorder) -> None:
        self._env, self._recorder = env, recorder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def reset(self, seed: int) -> Any:
        self._recorder.end_episodes()
        return self._env.reset(seed)

    def copy_worlds(self, source: Tensor) -> None:
        self._recorder.end_episodes()
        self._env.copy_worlds(source)

    def step(self, action: Tensor) -> StepResult:
        obs = {group: self._env.obs[group].clone() for group in self._recorder.groups}
        result: StepResult = self._env.step(action)
        self._recorder.add(obs, action, result)
        return result

    def state_dict(self) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self._env.state_dict()
        return state | {_PREFIX + name: value for name, value in self._recorder.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        ours = {name: value for name, value in state.items() if name.startswith(_PREFIX)}
        self._env.load_state_dict({name: value for name, value in state.items() if name not in ours})
        self._recorder.load_state_dict({name.removeprefix(_PREFIX): value for name, value in ours.items()})
