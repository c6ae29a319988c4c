"""Discounted returns-to-go. T steps, N worlds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels import _scan
from kernels._checks import check_fractions, check_rollout
from kernels.gae import make_inputs as make_gae_inputs
from kernels.registry import kernel

ARGUMENTS = ("reward", "next_value", "terminated", "done", "gamma")


def make_inputs(
    num_steps: int,
    num_worlds: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> dict[str, Any]:
    """Random arguments for `discounted_return`, as those of `gae`."""
    inputs = make_gae_inputs(num_steps, num_worlds, device, dtype, seed)
    return {name: inputs[name] for name in ARGUMENTS}


@kernel("discounted_return", inputs=make_inputs)
def discounted_return(
    reward: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    done: Tensor,
    gamma: float,
    *,
    implementation: str = "auto",
) -> Tensor:
    """Discounted sum of the rewards up to the episode's end (Sutton & Barto 2018, eq. 3.9).

        follows[t] = next_value[t] where done[t] or t is the last step, else return[t + 1]
        return[t]  = reward[t] + gamma * ~terminated[t] * follows[t]

    `next_value` stands for the rewards that were cut off, so it counts only where the episode was truncated
    and where the rollout ends; elsewhere it may be NaN. Differentiable once, by `reward` and `next_value`.
    Computed in float32 at least, in float64 by the reference. Inputs that are not contiguous are copied.

    Args:
        reward: `[T, N]` float32, bfloat16 or float16; float64 for the reference.
        next_value: `[T, N]`, V of the episode's last observation, or zero to ignore what was cut off.
        terminated: `[T, N]` bool, the episode ended and its value is zero from here on; implies done.
        done: `[T, N]` bool, terminated or truncated: the following step is of another episode.
        gamma: discount factor in [0, 1].
        implementation: as for `kernels.gae.gae`.

    Returns:
        The return, `[T, N]` in the dtype of `reward`.

    Raises:
        ValueError: an argument does not fit, or the implementation cannot take these tensors.
        ImportError: the package behind the implementation is not installed.
    """
    check_rollout("discounted_return", reward=reward, next_value=next_value, terminated=terminated, done=done)
    check_fractions("discounted_return", gamma=gamma)
    return _scan.returns(reward, next_value, None, terminated, done, float(gamma), 1.0, implementation)
