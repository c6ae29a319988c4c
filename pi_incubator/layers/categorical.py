"""Latent states as vectors of one-hot codes (Hafner et al. 2021, 2023, arXiv 2301.04104).

A latent state is C categorical variables with K classes each. Every distribution is mixed with 1 % of the
uniform one, so that no KL divergence can be infinite.

Letters: C categorical variables, K classes of each.
"""

from __future__ import annotations

import torch
from torch import Tensor

UNIFORM_SHARE = 0.01


def probabilities(logits: Tensor) -> Tensor:
    """Logits `[..., C, K]` -> probabilities `[..., C, K]`, mixed with the uniform distribution."""
    return (1.0 - UNIFORM_SHARE) * logits.softmax(-1) + UNIFORM_SHARE / logits.shape[-1]


def sample(logits: Tensor, uniform: Tensor) -> Tensor:
    """One-hot samples `[..., C, K]`, with the gradient of the probabilities (Bengio et al. 2013).

    Args:
        logits: `[..., C, K]`.
        uniform: `[..., C]` random numbers in [0, 1): the class is that of the quantile.
    """
    probability = probabilities(logits)
    above = probability.detach().cumsum(-1)
    # The last sum may be rounded to less than one, so the last class has no upper limit.
    reached = (uniform.unsqueeze(-1) >= above[..., :-1]).to(logits.dtype)  # [..., C, K - 1]
    first, last = torch.ones_like(reached[..., :1]), torch.zeros_like(reached[..., :1])
    one_hot = torch.cat((first, reached), -1) - torch.cat((reached, last), -1)
    return one_hot + (probability - probability.detach())


def mode(logits: Tensor) -> Tensor:
    """The most likely class of each variable, as one-hot codes `[..., C, K]`."""
    classes = torch.arange(logits.shape[-1], device=logits.device)
    return (logits.argmax(-1, keepdim=True) == classes).to(logits.dtype)


def divergence(logits: Tensor, from_logits: Tensor) -> Tensor:
    """KL divergence `[...]` of `logits` from `from_logits`, both `[..., C, K]`, summed over the variables."""
    probability, other = probabilities(logits), probabilities(from_logits)
    return (probability * (probability.log() - other.log())).sum((-2, -1))
