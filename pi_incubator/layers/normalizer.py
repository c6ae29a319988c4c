"""Observation normalization that belongs to the policy, and so travels with it to the robot."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ObservationNormalizer(nn.Module):
    """Shift and scale by the mean and standard deviation of everything observed so far.

    What a rollout observes is gathered by `observe` and takes effect at `commit`, so that a rollout and the
    update on it see one and the same normalization. Moments are merged as in Chan et al. 1979.

    Args:
        width: D.
        clip: results are clipped to ±`clip` standard deviations.
    """

    mean: Tensor
    std: Tensor
    count: Tensor
    gathered: Tensor

    def __init__(self, width: int, clip: float) -> None:
        super().__init__()
        self.clip = clip
        self.register_buffer("mean", torch.zeros(width))  # [D]
        self.register_buffer("std", torch.ones(width))  # [D]
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        # Rows: how many, sum and sum of squares of (observation - mean), in float64. [3, D]
        self.register_buffer("gathered", torch.zeros(3, width, dtype=torch.float64))

    def forward(self, observation: Tensor) -> Tensor:
        """`[..., D]` raw -> `[..., D]` normalized."""
        return ((observation - self.mean) / self.std).clamp(-self.clip, self.clip)

    def observe(self, observation: Tensor, mask: Tensor | None = None) -> None:
        """Let the moments of this period see raw observations `[N, D]`; they take effect at `commit`."""
        deviation = (observation - self.mean).double()
        moments = torch.stack((torch.ones_like(deviation), deviation, deviation.square()))
        self.gathered += moments.sum(1)

    def commit(self, all_reduce: object = None) -> None:
        """Merge what was gathered into the normalization; nothing gathered changes nothing."""
        num_new = self.gathered[0, 0]
        total = self.count + num_new
        safe_total, safe_new = total.clamp_min(1.0), num_new.clamp_min(1.0)
        shift = self.gathered[1] / safe_new  # the new data's mean, relative to the old mean
        scatter_new = self.gathered[2] - num_new * shift.square()
        scatter_old = self.std.double().square() * self.count
        scatter = scatter_old + scatter_new + shift.square() * self.count * num_new / safe_total
        mean = self.mean.double() + shift * num_new / safe_total
        # A feature that never moved keeps a finite scale.
        std = (scatter / safe_total).clamp_min(0.0).sqrt().clamp_min(1e-4)
        some = num_new > 0
        self.mean.copy_(torch.where(some, mean.float(), self.mean))
        self.std.copy_(torch.where(some, std.float(), self.std))
        self.count.copy_(total)
        self.gathered.zero_()


class NoNormalizer(nn.Module):
    """The null object: observations pass as they are."""

    def forward(self, observation: Tensor) -> Tensor:
        return observation

    def observe(self, observation: Tensor, mask: Tensor | None = None) -> None:
        """Nothing to remember."""

    def commit(self, all_reduce: object = None) -> None:
        """Nothing to merge."""


class GroupNormalizer(nn.ModuleDict):
    """A normalizer for each observation group."""

    def forward(self, obs):
        return {group: normalizer(obs[group]) for group, normalizer in self.items()}

    def observe(self, obs) -> None:
        for group, normalizer in self.items():
            normalizer.observe(obs[group])

    def commit(self, all_reduce=None) -> None:
        for normalizer in self.values():
            normalizer.commit(all_reduce)


def make_normalizer(spec, groups, enabled, clip):
    def one(group):
        if not enabled or spec.obs_dtype(group) == torch.uint8:
            return NoNormalizer()
        return ObservationNormalizer(spec.obs_dims[group], clip)

    return GroupNormalizer({group: one(group) for group in groups})
