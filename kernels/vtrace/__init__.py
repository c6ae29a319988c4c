"""V-trace: targets and advantages of a rollout that an older policy collected. T steps, N worlds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels import _scan
from kernels._checks import check_fractions, check_rollout
from kernels.gae import make_inputs as make_gae_inputs
from kernels.registry import kernel


def make_inputs(
    num_steps: int,
    num_worlds: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> dict[str, Any]:
    """Random arguments for `vtrace`: the episodes of `gae`'s, and ratios of which half are clipped."""
    inputs = make_gae_inputs(num_steps, num_worlds, device, dtype, seed)
    value, next_value, done = inputs["value"], inputs["next_value"], inputs["done"]
    next_value[:-1] = torch.where(done[:-1], next_value[:-1], value[1:])
    log_ratio = 0.5 * torch.randn(num_steps, num_worlds, generator=torch.Generator().manual_seed(seed + 1))
    return {
        "reward": inputs["reward"],
        "log_ratio": log_ratio.to(device, dtype),
        "value": value,
        "next_value": next_value,
        "terminated": inputs["terminated"],
        "done": done,
        "gamma": 0.99,
    }


@kernel("vtrace", inputs=make_inputs)
def vtrace(
    reward: Tensor,
    log_ratio: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    done: Tensor,
    gamma: float,
    lam: float = 1.0,
    rho_clip: float = 1.0,
    c_clip: float = 1.0,
    *,
    implementation: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Policy-gradient advantage and value target of IMPALA (Espeholt et al. 2018, eq. 1 and section 4.2).

        rho[t], c[t] = min(rho_clip, exp(log_ratio[t])), lam * min(c_clip, exp(log_ratio[t]))
        follows[t]   = next_value[t] where done[t] or t is the last step, else target[t + 1]
        discount[t]  = gamma * ~terminated[t]
        target[t]    = value[t] + rho[t] * (reward[t] + discount[t] * next_value[t] - value[t])
                       + discount[t] * c[t] * (follows[t] - next_value[t])
        advantage[t] = rho[t] * (reward[t] + discount[t] * follows[t] - value[t])

    `next_value[t]` is the paper's V(x[t + 1]), which within an episode is `value[t + 1]` too. A NaN that a
    flag hides stays hidden: `next_value` where terminated, the following episode where done. Not
    differentiable. Computed in float32 at least, in float64 by the reference. Inputs that are not contiguous
    are copied.

    Args:
        reward: `[T, N]` float32, bfloat16 or float16; float64 for the reference.
        log_ratio: `[T, N]`, log-probability of the action under the current policy minus that under the
            policy that took it.
        value: `[T, N]`, V of the observation that was acted on.
        next_value: `[T, N]`, V of the true next observation: of the last one of its episode where done.
        terminated: `[T, N]` bool, the episode ended and its value is zero from here on; implies done.
        done: `[T, N]` bool, terminated or truncated: the trace is cut.
        gamma: discount factor in [0, 1].
        lam: weight of the longer estimates in [0, 1] (remark 2).
        rho_clip: bound of a step's weight, which decides whose value is learned; infinity does not clip.
        c_clip: bound of the weight of what follows, for less variance; infinity does not clip.
        implementation: as for `kernels.gae.gae`.

    Returns:
        `(advantage, value_target)`, both `[T, N]` in the dtype of `reward`.

    Raises:
        ValueError: an argument does not fit, or the implementation cannot take these tensors.
        ImportError: the package behind the implementation is not installed.
    """
    check_rollout(
        "vtrace",
        reward=reward,
        log_ratio=log_ratio,
        value=value,
        next_value=next_value,
        terminated=terminated,
        done=done,
    )
    check_fractions("vtrace", gamma=gamma, lam=lam)
    for name, clip in {"rho_clip": rho_clip, "c_clip": c_clip}.items():
        if not clip >= 0.0:
            raise ValueError(f"vtrace: {name} must not be negative, got {clip}")
    numbers = (float(gamma), float(lam), float(rho_clip), float(c_clip))
    with torch.no_grad():
        call = _op if torch.compiler.is_compiling() else _run
        advantage, value_target = call(
            reward, log_ratio, value, next_value, terminated, done, *numbers, implementation
        )
    return advantage, value_target


def _run(
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
    implementation: str,
) -> Tensor:
    tensors = (reward, log_ratio, value, next_value, terminated, done)
    return _scan.run("vtrace", implementation, 2, *tensors, gamma, lam, rho_clip, c_clip)


_op = torch.library.custom_op("pi_incubator::vtrace", _run, mutates_args=())


@_op.register_fake
def _(reward: Tensor, *_: Any) -> Tensor:
    return _scan.outputs(reward, 2)
