"""The recursion behind every return as a plain torch loop: what the other implementations must equal."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels._checks import computed_in


def returns(
    reward: Tensor,
    next_value: Tensor,
    discount: Tensor | None,
    terminated: Tensor | None,
    done: Tensor | None,
    gamma: float,
    lam: float,
) -> Tensor:
    """See `kernels._scan.returns`; autograd can differentiate it."""
    reward, following = _widen(reward), _widen(next_value[-1])
    targets = []
    for t in reversed(range(len(reward))):
        value = _widen(next_value[t])
        if done is not None:
            following = torch.where(done[t], value, following)
        mixed = following if lam == 1.0 else value + lam * (following - value)
        future = gamma * mixed if discount is None else _widen(discount[t]) * mixed
        if terminated is not None:
            future = torch.where(terminated[t], 0.0, future)
        following = reward[t] + future
        targets.append(following)
    return torch.stack(targets[::-1]).to(next_value.dtype)


@torch.no_grad()
def returns_backward(
    gradient: Tensor,
    target: Tensor | None,
    next_value: Tensor,
    discount: Tensor | None,
    terminated: Tensor | None,
    done: Tensor | None,
    gamma: float,
    lam: float,
) -> Tensor:
    """See `kernels._scan._returns_backward`: x[t + 1] hands x[t] its gradient, so time runs forwards."""
    last = len(gradient) - 1
    carried = torch.zeros_like(_widen(gradient[0]))  # [N], what x[t - 1] adds to the gradient of x[t]
    rows = []
    for t in range(last + 1):
        value = _widen(next_value[t])
        by_reward = _widen(gradient[t]) + carried
        by_mixed = gamma * by_reward if discount is None else _widen(discount[t]) * by_reward
        if terminated is not None:
            by_mixed = torch.where(terminated[t], 0.0, by_mixed)
        cut = torch.full_like(carried, t == last, dtype=torch.bool) if done is None else done[t] | (t == last)
        by_value = by_mixed * torch.where(cut, 1.0, 1.0 - lam)
        carried = torch.where(cut, 0.0, lam * by_mixed)
        rows.append([by_reward, by_value])
        if target is not None:
            following = value if t == last else _widen(target[t + 1])
            by_discount = by_reward * (following if lam == 1.0 else value + lam * (following - value))
            if terminated is not None:
                by_discount = torch.where(terminated[t], 0.0, by_discount)
            rows[-1].append(by_discount)
    return torch.stack([torch.stack(row) for row in zip(*rows, strict=True)]).to(gradient.dtype)


@torch.no_grad()
def vtrace(
    reward: Tensor,
    log_ratio: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    done: Tensor,
    gamma: float,
    lam: float,
    rho_clip: float,
    c_clip: float,
) -> Tensor:
    """See `kernels.vtrace.vtrace`; `[2, T, N]`, advantage and value target."""
    dtype = reward.dtype
    reward, value, next_value = _widen(reward), _widen(value), _widen(next_value)
    ratio = _widen(log_ratio).exp()
    rho, c = ratio.clamp(max=rho_clip), ratio.clamp(max=c_clip)  # [T, N]
    out = reward.new_empty(2, *reward.shape)
    following = next_value[-1]
    for t in reversed(range(len(reward))):
        following = torch.where(done[t], next_value[t], following)
        bootstrap = torch.where(terminated[t], 0.0, gamma * next_value[t])
        future = torch.where(terminated[t], 0.0, gamma * following)
        out[0, t] = rho[t] * (reward[t] + future - value[t])
        correction = lam * c[t] * (future - bootstrap)
        following = value[t] + rho[t] * (reward[t] + bootstrap - value[t]) + correction
        out[1, t] = following
    return out.to(dtype)


def _widen(tensor: Tensor) -> Tensor:
    return tensor.to(computed_in(tensor.dtype))
