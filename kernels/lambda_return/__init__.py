"""Lambda return of an imagined rollout, whose discount is predicted step by step. T steps, N worlds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels import _scan
from kernels._checks import check_fractions, check_rollout
from kernels.registry import kernel


def make_inputs(
    num_steps: int,
    num_worlds: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> dict[str, Any]:
    """Random arguments for `lambda_return`: most episodes very probably go on."""
    generator = torch.Generator().manual_seed(seed)
    reward, next_value, logit = torch.randn(3, num_steps, num_worlds, generator=generator)
    return {
        "reward": reward.to(device, dtype),
        "next_value": next_value.to(device, dtype),
        "discount": (0.997 * (2.0 * logit + 4.0).sigmoid()).to(device, dtype),
        "lam": 0.95,
    }


@kernel("lambda_return", inputs=make_inputs)
def lambda_return(
    reward: Tensor,
    next_value: Tensor,
    discount: Tensor,
    lam: float,
    terminated: Tensor | None = None,
    *,
    implementation: str = "auto",
) -> Tensor:
    """Dreamer's lambda return (Hafner et al. 2021, eq. 4).

        follows[t] = next_value[t] where t is the last step, else return[t + 1]
        return[t]  = reward[t] + discount[t] * ((1 - lam) * next_value[t] + lam * follows[t])

    A discount of zero ends an episode, but it is a number: zero times NaN is NaN. What follows a step that is
    `terminated` is not looked at. Differentiable once, by reward, next value and discount, as an actor that
    learns through a world model needs it. Computed in float32 at least, in float64 by the reference. Inputs
    that are not contiguous are copied.

    Args:
        reward: `[T, N]` float32, bfloat16 or float16; float64 for the reference.
        next_value: `[T, N]`, V of the state that step t leads to.
        discount: `[T, N]`, gamma times the predicted probability that the episode goes on after step t.
        lam: weight of the longer returns in [0, 1]: 0 is one-step TD, 1 is Monte Carlo.
        terminated: `[T, N]` bool, steps whose return is their reward alone.
        implementation: as for `kernels.gae.gae`.

    Returns:
        The return, `[T, N]` in the dtype of `reward`.

    Raises:
        ValueError: an argument does not fit, or the implementation cannot take these tensors.
        ImportError: the package behind the implementation is not installed.
    """
    flags = {} if terminated is None else {"terminated": terminated}
    check_rollout("lambda_return", reward=reward, next_value=next_value, discount=discount, **flags)
    check_fractions("lambda_return", lam=lam)
    return _scan.returns(reward, next_value, discount, terminated, None, 1.0, float(lam), implementation)
