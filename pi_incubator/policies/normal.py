"""Density and entropy of a normal distribution, of which the policies' actions are made.

Letters: A actions.
"""

from __future__ import annotations

import math

from torch import Tensor


def log_density(error: Tensor, std: Tensor) -> Tensor:
    """Logarithm of the density of each action `[..., A]`.

    Args:
        error: `[..., A]` distance from the mean, in standard deviations.
        std: `[..., A]` or `[A]`.
    """
    return -0.5 * error.square() - std.log() - 0.5 * math.log(2.0 * math.pi)


def log_prob_of(value: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Logarithm of the density `[...]` of independent actions, all arguments `[..., A]`."""
    return log_density((value - mean) / std, std).sum(-1)


def entropy_of(std: Tensor) -> Tensor:
    """Entropy `[...]` of independent actions with standard deviations `[..., A]`, in nats."""
    return (std.log() + 0.5 * math.log(2.0 * math.pi * math.e)).sum(-1)
