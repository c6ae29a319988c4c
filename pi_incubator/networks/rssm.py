"""DreamerV3's recurrent state-space model of vectors, and heads that read its state."""

from __future__ import annotations

from torch import nn

from pi_incubator.config.networks.rssm import RSSMVectorSettings
from pi_incubator.layers.rssm import SymlogEncoder
from pi_incubator.layers.world_model import WorldModelNetwork
from pi_incubator.registry import network


@network("rssm")
class RSSM(WorldModelNetwork[RSSMVectorSettings]):
    """Reads the group `policy`."""

    def embed(self) -> SymlogEncoder:
        return SymlogEncoder((self.spec.obs_dims[self.actor_group], *self.settings.hidden_sizes))

    def decoder(self, num_features: int) -> nn.Module:
        return self.head(num_features, self.spec.obs_dims[self.actor_group], output_gain=1.0)
