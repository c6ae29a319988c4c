"""Normalization in plain torch: what the other implementations must equal."""

import torch
from torch import Tensor


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
