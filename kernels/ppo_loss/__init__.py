"""The three losses of clipped PPO and what is reported beside them, one launch forward and one backward.

B samples, A actions of a Gaussian policy, K of a categorical one.

The forward launch keeps no gradient but what each sample weighs in it: how the objective moves with its
log-probability and the value loss with its value. The backward launch reads mean and action, or logits, once
more and writes the gradient. That is the least traffic: a gradient `[B, A]` that was kept would be written,
read, scaled by the incoming one and written again, and logits would need two of them, because objective and
entropy are scaled apart. Nor would it be ready: the number of valid samples is known only when the forward
launch ends. And an evaluation that needs no gradient pays for none.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels import dispatch
from kernels.ppo_loss import op, reference
from kernels.registry import kernel

_HALVES = (torch.bfloat16, torch.float16)


class PPOLoss(NamedTuple):
    """0-dim tensors under the names of TorchRL's `ClipPPOLoss`; the losses can be differentiated."""

    loss_objective: Tensor
    """Clipped surrogate, to be minimized."""
    loss_critic: Tensor
    """Value loss times `critic_coeff`."""
    loss_entropy: Tensor
    """Negative entropy times `entropy_coeff`."""
    entropy: Tensor
    """In nats."""
    kl_approx: Tensor
    """E[log old - log new]; `mean_ratio - 1 + kl_approx` has less variance (Schulman 2020)."""
    clip_fraction: Tensor
    """Share of samples whose ratio lies outside the clip."""
    mean_ratio: Tensor
    """E[new / old]."""


def make_inputs(
    num_steps: int,
    num_worlds: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    num_actions: int = 12,
) -> dict[str, Any]:
    """Random arguments for `ppo_loss` of B = `num_steps * num_worlds` samples: a third is clipped."""
    generator = torch.Generator().manual_seed(seed)
    size = num_steps * num_worlds
    mean, noise = (torch.randn(size, num_actions, generator=generator) for _ in range(2))
    advantage, value, old_value, value_target, drift = torch.randn(5, size, generator=generator)
    log_std = torch.randn(num_actions, generator=generator) * 0.3 - 0.5
    log_prob = -(0.5 * noise.square() + log_std + reference.HALF_LOG_2PI).sum(-1)
    inputs = {
        "mean": mean,
        "log_std": log_std,
        "action": mean + log_std.exp() * noise,
        "log_prob": log_prob + 0.2 * drift,
        "advantage": 3.0 * advantage + 1.0,
        "value": value,
        "old_value": old_value,
        "value_target": value_target,
        "advantage_mean": torch.tensor(1.0),
        "advantage_rstd": torch.tensor(1.0 / 3.0),
    }
    mask = torch.rand(size, generator=generator) < 0.9
    return {
        **{name: x.to(device, dtype) for name, x in inputs.items()},
        "mask": mask.to(device),
        "clip_value": 0.2,
    }


@kernel("ppo_loss", inputs=make_inputs)
def ppo_loss(
    *,
    action: Tensor,
    log_prob: Tensor,
    advantage: Tensor,
    value: Tensor,
    value_target: Tensor,
    mean: Tensor | None = None,
    log_std: Tensor | None = None,
    logits: Tensor | None = None,
    old_value: Tensor | None = None,
    advantage_mean: Tensor | None = None,
    advantage_rstd: Tensor | None = None,
    mask: Tensor | None = None,
    clip_epsilon: float = 0.2,
    entropy_coeff: float = 0.01,
    critic_coeff: float = 1.0,
    loss_critic_type: str = "smooth_l1",
    clip_value: float | None = None,
    implementation: str = "auto",
) -> PPOLoss:
    """Losses of clipped PPO (Schulman et al. 2017, eq. 7 and 9), as TorchRL's `ClipPPOLoss` computes them.

        ratio          = exp(log pi(action) - log_prob)
        clipped        = clip(ratio, 1 - clip_epsilon, 1 + clip_epsilon)
        loss_objective = -E[min(ratio * advantage, clipped * advantage)]
        loss_critic    = critic_coeff * E[distance(value, value_target)]
        loss_entropy   = -entropy_coeff * E[entropy of pi]

    pi is Gaussian where `mean` and `log_std` are given, categorical where `logits` are. The losses are
    differentiable once, by `mean`, `log_std`, `logits` and `value`. Sums are taken in float32, and so are the
    results, whatever the inputs are: half of a mean ratio's digits are in its distance from 1. Gradients
    have the dtypes of what they belong to. Floating-point inputs are float32, bfloat16 or float16, mixed as
    autocast leaves them, or all of them float64, for the reference. Those that are not contiguous are copied.

    Args:
        action: `[B, A]` floating point, or `[B]` int64; one outside `[0, K)` makes the results NaN.
        log_prob: `[B]`, of `action` under the policy that took it.
        advantage: `[B]`.
        value: `[B]`.
        value_target: `[B]`.
        mean: `[B, A]`.
        log_std: `[A]` or `[B, A]`.
        logits: `[B, K]`, not necessarily normalized; -inf is an action that cannot be taken.
        old_value: `[B]`, the value at the time of `action`; read where `clip_value` is given.
        advantage_mean: `[]`; with `advantage_rstd`, `(advantage - advantage_mean) * advantage_rstd` is used.
        advantage_rstd: `[]`, reciprocal of the standard deviation.
        mask: `[B]` bool; samples where it is false count for nothing, even if they are NaN, and have a
            gradient of 0. The losses are 0 where no sample is left.
        clip_epsilon: how far the ratio may move from 1, in [0, 1).
        entropy_coeff: weight of the entropy.
        critic_coeff: weight of the value loss.
        loss_critic_type: "l2", the squared error, or "smooth_l1", half of it up to 1 and linear beyond.
        clip_value: the value may move this far from `old_value`: the larger of the loss and the loss of the
            clamped value counts. None does not clip.
        implementation: as for `kernels.gae.gae`.

    Raises:
        ValueError: an argument does not fit, or the implementation cannot take these tensors.
        ImportError: the package behind the implementation is not installed.
    """
    _check_settings(clip_epsilon, entropy_coeff, critic_coeff, loss_critic_type, clip_value, old_value)
    policy = _check_policy(mean, log_std, logits, action)
    samples = {"log_prob": log_prob, "advantage": advantage, "value": value, "old_value": old_value}
    samples |= {"value_target": value_target, "mask": mask}
    _check_samples(policy, samples)
    scalars = {"advantage_mean": advantage_mean, "advantage_rstd": advantage_rstd}
    _check_scalars(policy, scalars)
    floats = {"mean": mean, "log_std": log_std, "logits": logits, "action": action, **samples, **scalars}
    dtype = _common_dtype(policy, {name: x for name, x in floats.items() if x is not None})

    tensors = (
        *(policy, log_std, action, log_prob, advantage, value),
        *(old_value, value_target, advantage_mean, advantage_rstd, mask),
    )
    settings = (clip_epsilon, entropy_coeff, critic_coeff, loss_critic_type, clip_value)
    return _run(tensors, settings, dtype, implementation)


def _run(
    tensors: tuple[Tensor | None, ...], settings: tuple[Any, ...], dtype: torch.dtype, implementation: str
) -> PPOLoss:
    """By the reference, or the operator in a graph, or the compiled losses without it."""
    policy = tensors[0]
    assert policy is not None
    if not torch.compiler.is_compiling():
        dispatch.load("ppo_loss", implementation, policy.device.type, dtype)
    chosen = dispatch._choose(policy.device.type, dtype)[0] if implementation == "auto" else implementation
    if chosen != "triton":  # which converts what it loads
        tensors = tuple(x.float() if x is not None and x.dtype in _HALVES else x for x in tensors)
    arguments: list[Any] = [*tensors, *settings]
    if chosen == "reference":
        return PPOLoss(*reference.ppo_loss(*arguments))
    arguments = [x.contiguous() if isinstance(x, Tensor) else x for x in arguments]
    run = op.forward if torch.compiler.is_compiling() else op.Function.apply
    *losses, report, _ = run(*arguments, implementation)
    return PPOLoss(*losses, *report[:4].unbind())


def _check_settings(
    clip_epsilon: float,
    entropy_coeff: float,
    critic_coeff: float,
    loss_critic_type: str,
    clip_value: float | None,
    old_value: Tensor | None,
) -> None:
    if not 0 <= clip_epsilon < 1:
        raise ValueError(f"ppo_loss: clip_epsilon must lie in [0, 1), got {clip_epsilon}")
    for name, number in (("entropy_coeff", entropy_coeff), ("critic_coeff", critic_coeff)):
        if not math.isfinite(number):
            raise ValueError(f"ppo_loss: {name} must be finite, got {number}")
    if loss_critic_type not in reference.DISTANCES:
        known = ", ".join(reference.DISTANCES)
        raise ValueError(f"ppo_loss: loss_critic_type must be one of {known}, got {loss_critic_type!r}")
    if clip_value is None:
        return
    if not clip_value > 0:
        raise ValueError(f"ppo_loss: clip_value must be positive, or None for no clip, got {clip_value}")
    if old_value is None:
        raise ValueError("ppo_loss: clip_value needs old_value, the values to clip around")


def _check_policy(
    mean: Tensor | None, log_std: Tensor | None, logits: Tensor | None, action: Tensor
) -> Tensor:
    """The tensor that gives B, width and device: mean or logits."""
    if (mean is None) == (logits is None) or (mean is None) != (log_std is None):
        given = [
            name for name, x in (("mean", mean), ("log_std", log_std), ("logits", logits)) if x is not None
        ]
        raise ValueError(
            f"ppo_loss: give mean and log_std, or logits, got {' and '.join(given) or 'none of them'}"
        )
    policy = mean if mean is not None else logits
    assert policy is not None
    name = "mean" if logits is None else "logits"
    if policy.ndim != 2 or policy.shape[1] == 0:
        raise ValueError(
            f"ppo_loss: {name} must be [B, {'A' if mean is not None else 'K'}], got {_show(policy)}"
        )
    if log_std is not None:
        if log_std.shape not in (policy.shape, policy.shape[1:]) or log_std.device != policy.device:
            raise ValueError(
                f"ppo_loss: log_std must be {list(policy.shape[1:])} or {list(policy.shape)} on "
                f"{policy.device} like mean, got {_show(log_std)}"
            )
        if action.shape != policy.shape or action.device != policy.device:
            raise ValueError(
                f"ppo_loss: action must be {list(policy.shape)} on {policy.device} like mean, "
                f"got {_show(action)}"
            )
    elif (action.shape, action.dtype, action.device) != (policy.shape[:1], torch.int64, policy.device):
        raise ValueError(
            f"ppo_loss: action must be {list(policy.shape[:1])} torch.int64 on {policy.device} for logits of "
            f"{list(policy.shape)}, got {_show(action)}"
        )
    return policy


def _check_samples(policy: Tensor, samples: dict[str, Tensor | None]) -> None:
    for name, x in samples.items():
        if x is None:
            continue
        if x.shape != policy.shape[:1] or x.device != policy.device:
            raise ValueError(
                f"ppo_loss: {name} must be {list(policy.shape[:1])} on {policy.device}, one entry a sample, "
                f"got {_show(x)}"
            )
    mask = samples["mask"]
    if mask is not None and mask.dtype != torch.bool:
        raise ValueError(f"ppo_loss: mask must be torch.bool, got {_show(mask)}")


def _check_scalars(policy: Tensor, scalars: dict[str, Tensor | None]) -> None:
    missing = [name for name, x in scalars.items() if x is None]
    if len(missing) == 1:
        raise ValueError(f"ppo_loss: advantage_mean and advantage_rstd go together, {missing[0]} is missing")
    for name, x in scalars.items():
        if x is not None and (x.ndim != 0 or x.device != policy.device):
            raise ValueError(f"ppo_loss: {name} must be 0-dim on {policy.device}, got {_show(x)}")


def _common_dtype(policy: Tensor, tensors: dict[str, Tensor]) -> torch.dtype:
    """float64 if all floats are, else float32; also refuses what should have been detached."""
    expected = (torch.float64,) if policy.dtype == torch.float64 else (torch.float32, *_HALVES)
    for name, x in tensors.items():
        if name == "mask" or (name == "action" and "logits" in tensors):
            continue
        if x.dtype not in expected:
            known = ", ".join(str(dtype) for dtype in expected)
            raise ValueError(
                f"ppo_loss: {name} must be {known} beside a policy of {policy.dtype}, got {_show(x)}"
            )
        if x.requires_grad and name not in ("mean", "log_std", "logits", "value"):
            raise ValueError(f"ppo_loss: {name} requires a gradient, but is taken as a constant; detach it")
    return torch.float64 if policy.dtype == torch.float64 else torch.float32


def _show(x: Tensor) -> str:
    return f"{list(x.shape)} {x.dtype} on {x.device}"
