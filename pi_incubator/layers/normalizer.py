"""Observation normalization that is part of the policy, and so travels with it to the robot.

Letters: D is the width of an observation group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from envs_gpu.vec_env import EnvSpec
from kernels.normalize import gather_moments, make_moments, mean_and_std, merge_moments

AllReduce = Callable[[Tensor], Tensor]
"""This rank's moments `[3, D]` -> the moments `[3, D]` of all ranks together."""

CHUNK_ROWS = 4096
"""Rows that are copied together before the kernel counts them. A call of the kernel costs as much as 100 rows
do, and a copy much less; 4096 rows of a usual width still fit into the cache."""
OUTLIER_STD, OUTLIER_SHARE = 100.0, 0.01
"""An observation counts as at most so many standard deviations from the mean: 100, or as many as change the
variance by this share. So no single world can spoil the moments, and heavy tails count in full in the long
run."""


class _Pending:
    """Batches of one shape `[N, D]`, dtype and device, side by side in one buffer.

    A plain object: at every step, attributes of an `nn.Module` would take as long as the copy.
    """

    def __init__(self, like: Tensor) -> None:
        num_slots = CHUNK_ROWS // len(like)
        self.shape, self.dtype, self.device = like.shape, like.dtype, like.device
        self.buffer = like.new_empty(num_slots, *like.shape)
        self.slots = self.buffer.unbind(0)
        self.num_batches = 0

    def takes(self, batch: Tensor) -> bool:
        """Whether `batch` is like the others."""
        return batch.shape == self.shape and batch.dtype == self.dtype and batch.device == self.device

    def add(self, batch: Tensor, low: Tensor, high: Tensor) -> bool:
        """Copy `batch`, limited to `low` and `high` `[D]`, into the next slot; gives whether all are full."""
        torch.clamp(batch.detach(), low, high, out=self.slots[self.num_batches])
        self.num_batches += 1
        return self.num_batches == len(self.slots)

    def clear(self) -> Tensor:
        """The rows that wait `[B, N, D]`; they no longer do, and the next `add` overwrites them."""
        rows = self.buffer[: self.num_batches]
        self.num_batches = 0
        return rows


class ObservationNormalizer(nn.Module):
    """Subtract the mean and divide by the standard deviation of everything that was observed.

    `observe` adds to the moments of the current period, and `commit` lets them take effect. So a rollout and
    the update on it use the same normalization. Outliers are limited before they count (`OUTLIER_STD`).

    Moments are float64: count, mean and sum of squared deviations (Chan, Golub and LeVeque 1983, eq. 2.1; see
    `kernels/normalize/running.py`). `mean` and `std` follow from `moments` and change at `commit` only. They
    are buffers of their own because `forward` then takes three operations, which `torch.compile` fuses and
    ONNX knows. All four buffers are in the state dict, which is enough for a bit-exact continuation.

    Small batches wait in a buffer of `CHUNK_ROWS` rows until it is full, or until `commit`, `state_dict`, a
    copy of the module or a move to another device or dtype needs them. Only then are they in `gathered`.
    Call `observe` outside of compiled functions: inside one, every call goes to the kernel at once, which
    gives the same moments (up to rounding) but takes longer.

    `double()` makes `mean` and `std` float64; they have float64 accuracy from the next `commit` on. The
    moments must stay float64: after `float()` or `half()`, `observe` raises a ValueError.

    Args:
        width: D.
        clip: results lie in ±`clip` standard deviations.
    """

    mean: Tensor
    std: Tensor
    moments: Tensor
    gathered: Tensor

    def __init__(self, width: int, clip: float) -> None:
        super().__init__()
        self.clip = clip
        self.register_buffer("mean", torch.zeros(width))  # [D]
        self.register_buffer("std", torch.ones(width))  # [D]
        self.register_buffer("moments", make_moments(width))  # [3, D], of everything before the last commit
        self.register_buffer("gathered", make_moments(width))  # [3, D], since the last commit
        self._pending: _Pending | None = None  # made at the first `observe`
        self._outliers: tuple[Tensor, Tensor] | None = None

    def forward(self, observation: Tensor) -> Tensor:
        """`[..., D]` raw -> `[..., D]` normalized."""
        return ((observation - self.mean) / self.std).clamp(-self.clip, self.clip)

    def inverse(self, normalized: Tensor) -> Tensor:
        """`[..., D]` normalized -> `[..., D]` raw, where it was not clipped."""
        return normalized * self.std + self.mean

    def observe(self, observation: Tensor, mask: Tensor | None = None) -> None:
        """Add `observation` `[..., D]` to what the next `commit` merges.

        Args:
            observation: raw; float32 or half (widened first), or float64.
            mask: `[...]` bool; rows where it is false do not count. None: every row counts.

        Raises:
            ValueError: a shape, dtype or device does not fit.
        """
        low, high = self._outliers or self._find_outliers()
        if torch.compiler.is_compiling() or mask is not None:
            gather_moments(observation.clamp(low, high), self.gathered, mask)
            return
        pending = self._pending
        if pending is None or not pending.takes(observation):
            self._flush()
            if observation.ndim != 2 or not 0 < len(observation) <= CHUNK_ROWS // 2:
                gather_moments(observation.clamp(low, high), self.gathered)
                return
            gather_moments(observation[:0], self.gathered)  # raises where something does not fit
            pending = self._pending = _Pending(observation)
        if pending.add(observation, low, high):
            self._flush()

    def commit(self, all_reduce: AllReduce | None = None) -> None:
        """Merge what was observed into the moments; without new observations no bit changes.

        Args:
            all_reduce: merges `gathered` of all ranks (`kernels.normalize.merge_all`); None with one process.
        """
        self._flush()
        merge_moments(self.moments, self.gathered if all_reduce is None else all_reduce(self.gathered))
        mean, std = mean_and_std(self.moments)
        self.mean.copy_(mean)
        self.std.copy_(std)
        self.gathered.zero_()
        self._outliers = None

    def _find_outliers(self) -> tuple[Tensor, Tensor]:
        """The limits `[D]` of what counts in full; infinite while nothing is known."""
        count = self.moments[0]
        reach = (OUTLIER_SHARE * count).sqrt().clamp(min=OUTLIER_STD).to(self.std) * self.std
        reach = torch.where(count > 0, reach, torch.inf)
        self._outliers = self.mean - reach, self.mean + reach
        return self._outliers

    def _flush(self) -> None:
        """Count the rows that wait."""
        if self._pending is not None and self._pending.num_batches:
            gather_moments(self._pending.clear(), self.gathered)

    def __getstate__(self) -> dict[str, Any]:
        self._flush()
        return self.__dict__ | {"_pending": None, "_outliers": None}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._flush()  # before `gathered` is on another device
        self._outliers = None
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self._flush()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self._pending = self._outliers = None  # they belong to the state that is replaced
        super()._load_from_state_dict(*arguments)


class NoNormalizer(nn.Module):
    """The null object: observations pass unchanged."""

    def forward(self, observation: Tensor) -> Tensor:
        return observation

    def inverse(self, normalized: Tensor) -> Tensor:
        return normalized

    def observe(self, observation: Tensor, mask: Tensor | None = None) -> None:
        """Nothing to count."""

    def commit(self, all_reduce: AllReduce | None = None) -> None:
        """Nothing to merge, on any rank."""


class GroupNormalizer(nn.ModuleDict):
    """One normalizer for each observation group, under the group's name."""

    def forward(self, obs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Raw groups -> the normalized groups that have a normalizer here; others are left out."""
        return {group: normalizer(obs[group]) for group, normalizer in self.items()}

    def observe(self, obs: Mapping[str, Tensor]) -> None:
        """Let each group's normalizer see its raw observations; they take effect at `commit`."""
        for group in self:
            self.of(group).observe(obs[group])

    def commit(self, all_reduce: AllReduce | None = None) -> None:
        """Let what was observed take effect, group by group in the same order on every rank."""
        for group in self:
            self.of(group).commit(all_reduce)

    def of(self, group: str) -> ObservationNormalizer | NoNormalizer:
        """The normalizer of one group."""
        return cast(ObservationNormalizer | NoNormalizer, self[group])


def make_normalizer(spec: EnvSpec, groups: Iterable[str], enabled: bool, clip: float) -> GroupNormalizer:
    """Normalizers for `groups` of the env, on the CPU.

    Args:
        spec: the env's observation groups.
        groups: names of the groups to normalize, in order.
        enabled: False: every group passes unchanged.
        clip: as of `ObservationNormalizer`.
    """

    def make(group: str) -> ObservationNormalizer | NoNormalizer:
        # Pixels are whole numbers of a known range, and the encoder scales them.
        if not enabled or spec.obs_dtype(group) == torch.uint8:
            return NoNormalizer()
        return ObservationNormalizer(spec.obs_dims[group], clip)

    return GroupNormalizer({group: make(group) for group in groups})
