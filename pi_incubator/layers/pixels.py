"""Pictures to features and back: convolutions that halve the size, and their mirror image.

As in DreamerV3 (Hafner et al. 2023, arXiv 2301.04104, appendix B).

Letters: B pictures, C channels, H height, W width, F features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from pi_incubator.layers.encoder import StatelessEncoder
from pi_incubator.layers.norm_mlp import NORM_EPS, dense, normalized

KERNEL, STRIDE, PADDING = 4, 2, 1
"""Of every layer: it halves or doubles height and width."""


class StridedEncoder(StatelessEncoder):
    """Convolutions, each followed by normalization and SiLU.

    Args:
        shape: C, H and W; H and W are multiples of 2 to the number of layers.
        channels: of each convolution.
    """

    def __init__(self, shape: tuple[int, int, int], channels: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise((shape[0], *channels)):
            layers += [nn.Conv2d(fan_in, fan_out, KERNEL, STRIDE, PADDING), _norm(fan_out), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Flatten())
        self.num_features = math.prod(smallest(shape, channels))

    def encode(self, pixels: Tensor) -> Tensor:
        """`[B, C, H, W]` of 0 to 255, uint8 or float -> features `[B, F]`."""
        features: Tensor = self.layers(pixels.float() / 255.0 - 0.5)
        return features


class StridedDecoder(nn.Module):
    """Features `[B, F]` -> pictures of 0 to 1, `[B, C, H, W]`.

    Args:
        num_features: F.
        shape: as of `StridedEncoder`.
        channels: those of the encoder, whose order is reversed.
    """

    def __init__(self, num_features: int, shape: tuple[int, int, int], channels: Sequence[int]) -> None:
        super().__init__()
        first = smallest(shape, channels)
        width = math.prod(first)
        layers: list[nn.Module] = [*normalized(dense(num_features, width), width), nn.Unflatten(-1, first)]
        for fan_in, fan_out in pairwise(reversed(channels)):
            layers += [
                nn.ConvTranspose2d(fan_in, fan_out, KERNEL, STRIDE, PADDING),
                _norm(fan_out),
                nn.SiLU(),
            ]
        layers += [nn.ConvTranspose2d(channels[0], shape[0], KERNEL, STRIDE, PADDING), nn.Sigmoid()]
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        pictures: Tensor = self.layers(features)
        return pictures


def smallest(shape: tuple[int, int, int], channels: Sequence[int]) -> tuple[int, int, int]:
    """Channels, height and width after the last convolution."""
    _, height, width = shape
    return channels[-1], height >> len(channels), width >> len(channels)


def _norm(num_channels: int) -> nn.Module:
    """Over a whole picture."""
    return nn.GroupNorm(1, num_channels, eps=NORM_EPS)
