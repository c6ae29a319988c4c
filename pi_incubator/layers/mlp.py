"""Fully connected layers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from pi_incubator.layers.precision import full_precision

ACTIVATIONS = {"tanh": nn.Tanh, "elu": nn.ELU, "relu": nn.ReLU, "silu": nn.SiLU}


class OutputLayer(nn.Linear):
    """The last layer, in float32 also under autocast.

    Log-probabilities are computed from its outputs. Where the standard deviation is small, bfloat16 means
    would make ratios and KL divergence mostly rounding errors.
    """

    def forward(self, features: Tensor) -> Tensor:
        with full_precision(features.device):
            return super().forward(features.to(self.weight.dtype))


def mlp(sizes: Sequence[int], activation: type[nn.Module], output_gain: float) -> nn.Sequential:
    """Linear layers of `sizes` with orthogonal weights (Saxe et al. 2014) and zero biases.

    A small `output_gain` makes the first actions almost those of the untrained mean, which helps PPO
    (Andrychowicz et al. 2021, "What Matters In On-Policy Reinforcement Learning?").
    """
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        last = len(layers) == 2 * (len(sizes) - 2)
        linear = (OutputLayer if last else nn.Linear)(fan_in, fan_out)
        nn.init.orthogonal_(linear.weight, output_gain if last else 2**0.5)
        nn.init.zeros_(linear.bias)
        layers += [linear] if last else [linear, activation()]
    return nn.Sequential(*layers)


def embedding(width: int, size: int, activation: type[nn.Module]) -> nn.Sequential:
    """A linear layer from `width` to `size` and its activation; weights as of `mlp`."""
    linear = nn.Linear(width, size)
    nn.init.orthogonal_(linear.weight, 2**0.5)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(linear, activation())
