"""Fully connected layers with normalization, as in DreamerV3 (Hafner et al. 2023, arXiv 2301.04104)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

NORM_EPS = 1e-4


def norm_mlp(sizes: Sequence[int], output_gain: float | None = None) -> nn.Sequential:
    """Linear layers of `sizes`, each followed by RMS normalization and SiLU.

    Args:
        sizes: width of the input, then of each layer.
        output_gain: where it is given, the last layer is linear alone, with weights scaled by it.
    """
    layers: list[nn.Module] = []
    hidden = sizes if output_gain is None else sizes[:-1]
    for fan_in, fan_out in pairwise(hidden):
        layers += normalized(dense(fan_in, fan_out), fan_out)
    if output_gain is not None:
        layers.append(dense(sizes[-2], sizes[-1], output_gain))
    return nn.Sequential(*layers)


def normalized(layer: nn.Module, width: int) -> list[nn.Module]:
    """`layer`, then normalization and activation of its `width` outputs."""
    return [layer, nn.RMSNorm(width, eps=NORM_EPS), nn.SiLU()]


def dense(fan_in: int, fan_out: int, gain: float = 1.0) -> nn.Linear:
    """A linear layer with weights from a truncated normal distribution of variance `gain^2 / fan_in`."""
    layer = nn.Linear(fan_in, fan_out)
    # 0.88 is the standard deviation of a standard normal number that is cut off at two.
    std = gain * fan_in**-0.5 / 0.87962566
    if gain:
        nn.init.trunc_normal_(layer.weight, std=std, a=-2.0 * std, b=2.0 * std)
    else:
        nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
