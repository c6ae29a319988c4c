"""A convolutional encoder of pixels that policy and critic share, and a head for each."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from pi_incubator.config.networks.cnn import CNNSettings
from pi_incubator.layers.encoder import Encoder, StatelessEncoder
from pi_incubator.layers.network import EncoderNetwork
from pi_incubator.registry import network

# Kernel, stride and padding of each layer: those of Mnih et al. 2015, "Human-level control through deep
# reinforcement learning", padded so that small pictures survive them; later layers are like the third.
LAYERS = ((8, 4, 2), (4, 2, 1), (3, 1, 1))


@network("cnn")
class CNN(EncoderNetwork[CNNSettings]):
    """Policy and critic see the group `pixels` and nothing else."""

    shares_encoder = True

    @property
    def actor_group(self) -> str:
        return "pixels"

    @property
    def critic_group(self) -> str:
        return "pixels"

    def encoder(self, group: str) -> Encoder:
        if self.spec.pixels_shape is None:
            raise ValueError(f"network cnn: {self.spec.name} has no pixels; make the env with them")
        settings = self.settings
        shape, width = self.spec.pixels_shape, settings.hidden_sizes[0]
        return PixelEncoder(shape, settings.channels, width, self.activation)


class PixelEncoder(StatelessEncoder):
    """Convolutions, then one linear layer.

    Args:
        shape: channels, height and width of the pictures.
        channels: of each convolution.
        width: F, of the features.
        activation: after every layer.
    """

    def __init__(
        self, shape: tuple[int, int, int], channels: Sequence[int], width: int, activation: type[nn.Module]
    ) -> None:
        super().__init__()
        self.num_features = width
        layers: list[nn.Module] = []
        for index, (fan_in, fan_out) in enumerate(pairwise((shape[0], *channels))):
            kernel, stride, padding = LAYERS[min(index, len(LAYERS) - 1)]
            layers += [_orthogonal(nn.Conv2d(fan_in, fan_out, kernel, stride, padding)), activation()]
        self.convolutions = nn.Sequential(*layers, nn.Flatten())
        with torch.no_grad():
            flat = self.convolutions(torch.zeros(1, *shape)).shape[-1]
        # Normalized, so that the heads meet features of one scale, however bright the pictures are.
        self.project = nn.Sequential(_orthogonal(nn.Linear(flat, width)), nn.LayerNorm(width), activation())

    def encode(self, pixels: Tensor) -> Tensor:
        """`[B, C, H, W]` of 0 to 255, uint8 or float -> features `[B, F]`."""
        return self.project(self.convolutions(pixels.float() / 255.0 - 0.5))


def _orthogonal(layer: nn.Conv2d | nn.Linear) -> nn.Module:
    nn.init.orthogonal_(layer.weight, 2**0.5)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
