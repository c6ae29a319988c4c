"""Convolutions of pictures and of grids, such as a height scan, to features.

Letters: B samples, C channels, H height (rows), W width (columns), F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn

from pi_incubator.layers.encoder import StatelessEncoder


class ConvolutionalEncoder(StatelessEncoder):
    """Convolutions, then one linear layer.

    Args:
        shape: C, H and W.
        channels: of each convolution.
        width: F.
        activation: after every layer.
    """

    kernels: ClassVar[tuple[tuple[int, int, int], ...]]
    """Kernel, stride and padding of each convolution; later ones are like the last."""

    def __init__(
        self, shape: tuple[int, int, int], channels: Sequence[int], width: int, activation: type[nn.Module]
    ) -> None:
        super().__init__()
        self.num_features = width
        layers: list[nn.Module] = []
        for index, (fan_in, fan_out) in enumerate(pairwise((shape[0], *channels))):
            kernel, stride, padding = self.kernels[min(index, len(self.kernels) - 1)]
            layers += [_orthogonal(nn.Conv2d(fan_in, fan_out, kernel, stride, padding)), activation()]
        self.convolutions = nn.Sequential(*layers, nn.Flatten())
        with torch.no_grad():
            flat = self.convolutions(torch.zeros(1, *shape)).shape[-1]
        # Normalized, so that the heads meet features of one scale, however bright the pictures are.
        self.project = nn.Sequential(_orthogonal(nn.Linear(flat, width)), nn.LayerNorm(width), activation())

    def encode(self, observation: Tensor) -> Tensor:
        """`[B, C, H, W]` -> features `[B, F]`."""
        features: Tensor = self.project(self.convolutions(observation))
        return features


class PixelEncoder(ConvolutionalEncoder):
    """Of pictures.

    The kernels are those of Mnih et al. 2015, "Human-level control through deep reinforcement learning",
    padded so that small pictures survive them.
    """

    kernels = ((8, 4, 2), (4, 2, 1), (3, 1, 1))

    def encode(self, observation: Tensor) -> Tensor:
        """`[B, C, H, W]` of 0 to 255, uint8 or float -> features `[B, F]`."""
        return super().encode(observation.float() / 255.0 - 0.5)


class GridEncoder(ConvolutionalEncoder):
    """Of grids with few points: the first convolution sees each of them, every later one halves the grid."""

    kernels = ((3, 1, 1), (3, 2, 1))


def _orthogonal(layer: nn.Conv2d | nn.Linear) -> nn.Module:
    nn.init.orthogonal_(layer.weight, 2**0.5)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
