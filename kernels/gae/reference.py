"""Generalized advantage estimation as a plain torch loop: what the other implementations must equal."""

import torch
from torch import Tensor


@torch.no_grad()
def gae(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    done: Tensor,
    gamma: float,
    lam: float,
    normalize: bool,
    mask: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `kernels.gae.gae`."""
    if reward.dtype != torch.float64:
        reward, value, next_value = reward.float(), value.float(), next_value.float()
    delta = reward + torch.where(terminated, 0.0, gamma * next_value) - value  # [T, N]
    advantage = torch.empty_like(reward)
    following = torch.zeros_like(reward[0])  # [N], the advantage of step t + 1
    for t in reversed(range(len(reward))):
        following = delta[t] + torch.where(done[t], 0.0, gamma * lam * following)
        advantage[t] = following
    value_target = advantage + value

    kept = torch.ones_like(done) if mask is None else mask
    count = kept.sum()
    mean = torch.where(kept, advantage, 0.0).sum() / count.clamp(min=1)
    # Taken twice: rounded once, the mean of equal entries is not theirs, and noise is scaled up to 1.
    mean = mean + torch.where(kept, advantage - mean, 0.0).sum() / count.clamp(min=1)
    deviation = torch.where(kept, advantage - mean, 0.0)
    scale = 1.0 / ((deviation.square().sum() / (count - 1).clamp(min=1)).sqrt() + eps)
    moments = torch.stack((mean, scale, count.to(mean.dtype)))
    return deviation * scale if normalize else advantage, value_target, moments
