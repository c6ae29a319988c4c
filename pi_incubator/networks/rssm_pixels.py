"""DreamerV3's recurrent state-space model of pictures, and heads that read its state."""

from __future__ import annotations

from torch import Tensor, nn

from pi_incubator.config.networks.rssm_pixels import RSSMPixelsSettings
from pi_incubator.layers.pixels import StridedDecoder, StridedEncoder
from pi_incubator.layers.world_model import WorldModelNetwork
from pi_incubator.registry import network


@network("rssm_pixels")
class RSSMPixels(WorldModelNetwork[RSSMPixelsSettings]):
    """Reads the group `pixels`."""

    @property
    def actor_group(self) -> str:
        return "pixels"

    def embed(self) -> StridedEncoder:
        return StridedEncoder(self._shape, self.settings.channels)

    def decoder(self, num_features: int) -> nn.Module:
        return StridedDecoder(num_features, self._shape, self.settings.channels)

    def decoder_target(self, observation: Tensor) -> Tensor:
        return observation.float() / 255.0

    @property
    def _shape(self) -> tuple[int, int, int]:
        if self.spec.pixels_shape is None:
            raise ValueError(f"network rssm_pixels: {self.spec.name} has no pixels; make the env with them")
        return self.spec.pixels_shape
