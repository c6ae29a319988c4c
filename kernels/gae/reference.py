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
) -> tuple[Tensor, Tensor]:
    """See `kernels.gae.gae`."""
    delta = reward + torch.where(terminated, 0.0, gamma * next_value) - value  # [T, N]
    advantage = torch.empty_like(reward)
    following = torch.zeros_like(reward[0])  # [N], the advantage of step t + 1
    for t in reversed(range(len(reward))):
        following = delta[t] + torch.where(done[t], 0.0, gamma * lam * following)
        advantage[t] = following
    return advantage, advantage + value
