"""A convolutional encoder of pixels that actor and critic share, and a head for each."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from envs_gpu.vec_env import EnvSpec
from pi_incubator.config.models import NetworkSection
from pi_incubator.networks._actor_critic import ActorCritic
from pi_incubator.networks.mlp import ACTIVATIONS, mlp
from pi_incubator.registry import network

# Kernel, stride and padding of each layer: those of Mnih et al. 2015, "Human-level control through deep
# reinforcement learning", padded so that small pictures survive them; later layers are like the third.
LAYERS = ((8, 4, 2), (4, 2, 1), (3, 1, 1))


@network("cnn")
def make_cnn(cfg: NetworkSection, spec: EnvSpec) -> ActorCritic:
    """Actor and critic see the group `pixels` and nothing else."""
    if spec.pixels_shape is None:
        raise ValueError(f"network cnn: {spec.name} has no pixels; make the env with them")
    activation = ACTIVATIONS[cfg.activation]
    encoder = PixelEncoder(spec.pixels_shape, cfg.channels, cfg.hidden_sizes[0], activation)
    actor = mlp([*cfg.hidden_sizes, spec.action_dim], activation, output_gain=0.01)
    critic = mlp([*cfg.hidden_sizes, 1], activation, output_gain=1.0)
    return ActorCritic(cfg, spec, actor, critic, groups=("pixels", "pixels"), encoders={"pixels": encoder})


class PixelEncoder(nn.Module):
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
        layers: list[nn.Module] = []
        for index, (fan_in, fan_out) in enumerate(pairwise((shape[0], *channels))):
            kernel, stride, padding = LAYERS[min(index, len(LAYERS) - 1)]
            layers += [_orthogonal(nn.Conv2d(fan_in, fan_out, kernel, stride, padding)), activation()]
        self.convolutions = nn.Sequential(*layers, nn.Flatten())
        with torch.no_grad():
            flat = self.convolutions(torch.zeros(1, *shape)).shape[-1]
        # Normalized, so that the heads meet features of one scale, however bright the pictures are.
        self.project = nn.Sequential(_orthogonal(nn.Linear(flat, width)), nn.LayerNorm(width), activation())

    def forward(self, pixels: Tensor) -> Tensor:
        """`[B, C, H, W]` of 0 to 255, uint8 or float -> features `[B, F]`."""
        return self.project(self.convolutions(pixels.float() / 255.0 - 0.5))


def _orthogonal(layer: nn.Conv2d | nn.Linear) -> nn.Module:
    nn.init.orthogonal_(layer.weight, 2**0.5)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
