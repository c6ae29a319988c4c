"""A convolutional encoder of pixels that policy and critic share, and a head for each."""

from __future__ import annotations

from pi_incubator.config.networks.cnn import CNNSettings
from pi_incubator.layers.convolution import PixelEncoder
from pi_incubator.layers.encoder import Encoder
from pi_incubator.layers.network import EncoderNetwork
from pi_incubator.registry import network


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
