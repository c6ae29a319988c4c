"""TD(lambda) targets of a value function. T steps, N worlds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels import _scan
from kernels._checks import check_fractions, check_rollout
from kernels.gae import make_inputs as make_gae_inputs
from kernels.registry import kernel

ARGUMENTS = ("reward", "next_value", "terminated", "done", "gamma", "lam")


def make_inputs(
    num_steps: int,
    num_worlds: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> dict[str, Any]:
    """Random arguments for `td_lambda`, as those of `gae`."""
    inputs = make_gae_inputs(num_steps, num_worlds, device, dtype, seed)
    return {name: inputs[name] for name in ARGUMENTS}


@kernel("td_lambda", inputs=make_inputs)
def td_lambda(
    reward: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    done: Tensor,
    gamma: float,
    lam: float,
    *,
    implementation: str = "auto",
) -> Tensor:
    """Lambda return, the target of TD(lambda) (Sutton & Barto 2018, eq. 12.20, where gamma ends an episode).

        follows[t] = next_value[t] where done[t] or t is the last step, else target[t + 1]
        target[t]  = reward[t] + gamma * ~terminated[t] * ((1 - lam) * next_value[t] + lam * follows[t])

    A NaN that a flag hides stays hidden: `next_value` where terminated, the following episode where done.
    Differentiable once, by `reward` and `next_value`. Computed in float32 at least, in float64 by the
    reference. Inputs that are not contiguous are copied.

    Args:
        reward: `[T, N]` float32, bfloat16 or float16; float64 for the reference.
        next_value: `[T, N]`, V of the true next observation: of the last one of its episode where done.
        terminated: `[T, N]` bool, the episode ended and its value is zero from here on; implies done.
        done: `[T, N]` bool, terminated or truncated: the following step is of another episode.
        gamma: discount factor in [0, 1].
        lam: weight of the longer returns in [0, 1]: 0 is one-step TD, 1 is Monte Carlo.
        implementation: as for `kernels.gae.gae`.

    Returns:
        The target, `[T, N]` in the dtype of `reward`.

    Raises:
        ValueError: an argument does not fit, or the implementation cannot take these tensors.
        ImportError: the package behind the implementation is not installed.
    """
    check_rollout("td_lambda", reward=reward, next_value=next_value, terminated=terminated, done=done)
    check_fractions("td_lambda", gamma=gamma, lam=lam)
    return _scan.returns(reward, next_value, None, terminated, done, float(gamma), float(lam), implementation)
