"""The losses of PPO in plain torch: what the other implementations must equal, by value and by autograd."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)

DISTANCES = {"l2": F.mse_loss, "smooth_l1": F.smooth_l1_loss}


def ppo_loss(
    policy: Tensor,
    log_std: Tensor | None,
    action: Tensor,
    log_prob: Tensor,
    advantage: Tensor,
    value: Tensor,
    old_value: Tensor | None,
    value_target: Tensor,
    advantage_mean: Tensor | None,
    advantage_rstd: Tensor | None,
    mask: Tensor | None,
    clip_epsilon: float,
    entropy_coeff: float,
    critic_coeff: float,
    loss_critic_type: str,
    clip_value: float | None,
) -> tuple[Tensor, ...]:
    """The fields of `PPOLoss` in their order; `policy` is the mean, or the logits where `log_std` is None."""
    kept = torch.ones_like(value, dtype=torch.bool) if mask is None else mask
    count = kept.sum().clamp(min=1)

    def mean(samples: Tensor) -> Tensor:
        return torch.where(kept, samples, 0.0).sum() / count

    def fill(samples: Tensor) -> Tensor:
        # Before they are used: a NaN that is only hidden afterwards comes back through the gradient.
        return samples if mask is None else torch.where(mask.view(-1, *[1] * (samples.ndim - 1)), samples, 0)

    if log_std is None:
        new_log_prob, entropy = _categorical(fill(policy), fill(action))
    else:
        log_std = log_std if log_std.ndim == 1 else fill(log_std)
        new_log_prob, entropy = _gaussian(fill(policy), log_std, fill(action))
    log_ratio = new_log_prob - fill(log_prob)
    advantage = fill(advantage)
    if advantage_mean is not None and advantage_rstd is not None:
        advantage = (advantage - advantage_mean) * advantage_rstd
    ratio = log_ratio.exp()
    clipped = log_ratio.clamp(math.log1p(-clip_epsilon), math.log1p(clip_epsilon))
    gain = torch.minimum(ratio * advantage, clipped.exp() * advantage)

    value, value_target = fill(value), fill(value_target)
    distance = DISTANCES[loss_critic_type]
    critic = distance(value, value_target, reduction="none")
    if clip_value is not None and old_value is not None:
        old_value = fill(old_value)
        held = old_value + (value - old_value).clamp(-clip_value, clip_value)
        critic = torch.maximum(critic, distance(held, value_target, reduction="none"))

    mean_entropy = mean(entropy)
    return (
        mean(-gain),
        critic_coeff * mean(critic),
        -entropy_coeff * mean_entropy,
        mean_entropy.detach(),
        mean(-log_ratio.detach()),
        mean((clipped != log_ratio).to(value.dtype)),
        mean(ratio.detach()),
    )


def _gaussian(mean: Tensor, log_std: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy, `[B]`."""
    z = (action - mean) * (-log_std).exp()
    log_prob = -(0.5 * z.square() + log_std + HALF_LOG_2PI).sum(-1)
    return log_prob, (log_std + HALF_LOG_2PI + 0.5).expand_as(mean).sum(-1)


def _categorical(logits: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy, `[B]`; a logit of -inf is an action that is never taken."""
    log_prob = logits.log_softmax(-1)
    prob = log_prob.exp()
    entropy = -(prob * torch.where(prob == 0, 0.0, log_prob)).sum(-1)
    last = logits.shape[-1] - 1
    chosen = log_prob.gather(-1, action.clamp(0, last).unsqueeze(-1)).squeeze(-1)
    return torch.where((action < 0) | (action > last), torch.nan, chosen), entropy
