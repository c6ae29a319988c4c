"""Normalization in plain torch: what the other implementations must equal."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.normalize.running import mean_and_std, merge_moments


@torch.no_grad()
def normalize_advantage(advantage: Tensor, eps: float, mask: Tensor | None) -> Tensor:
    """See `kernels.normalize.normalize_advantage`."""
    kept = torch.ones_like(advantage, dtype=torch.bool) if mask is None else mask
    count = kept.sum()
    mean = torch.where(kept, advantage, 0.0).sum() / count.clamp(min=1)
    # Taken twice: rounded once, the mean of equal entries is not theirs, and noise is scaled up to 1.
    mean = mean + torch.where(kept, advantage - mean, 0.0).sum() / count.clamp(min=1)
    deviation = torch.where(kept, advantage - mean, 0.0)
    std = (deviation.square().sum() / (count - 1).clamp(min=1)).sqrt()
    return deviation / (std + eps)


@torch.no_grad()
def running_normalize(
    observation: Tensor, moments: Tensor, update: bool, mask: Tensor | None, clip: float, min_std: float
) -> Tensor:
    """See `kernels.normalize.running_normalize`; `[N, D]`, in float64 within."""
    mean, std = mean_and_std(moments, min_std)
    normalized = ((observation.double() - mean) / std).clamp(-clip, clip).to(observation.dtype)
    if update:
        gather_moments(observation, moments, mask)
    return normalized


@torch.no_grad()
def gather_moments(observation: Tensor, moments: Tensor, mask: Tensor | None) -> None:
    """See `kernels.normalize.gather_moments`; `[N, D]`, in float64 within."""
    wide = observation.double()
    kept = torch.ones_like(wide, dtype=torch.bool) if mask is None else mask[:, None].expand_as(wide)
    count = kept.double().sum(0)
    mean = torch.where(kept, wide, 0.0).sum(0) / count.clamp(min=1.0)
    squares = torch.where(kept, wide - mean, 0.0).square().sum(0)
    merge_moments(moments, torch.stack((count, mean, squares)))
