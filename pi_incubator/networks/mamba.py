"""Selective state spaces (Gu and Dao 2023); policy and critics share no layers."""

from __future__ import annotations

from pi_incubator.config.networks.mamba import MambaSettings
from pi_incubator.layers.encoder import Encoder
from pi_incubator.layers.mamba import MambaEncoder
from pi_incubator.layers.network import EncoderNetwork
from pi_incubator.registry import network


@network("mamba")
class Mamba(EncoderNetwork[MambaSettings]):
    """The first of `hidden_sizes` is the width of the residual stream, the others layers of the heads."""

    def encoder(self, group: str) -> Encoder:
        settings = self.settings
        return MambaEncoder(
            self.spec.obs_dims[group],
            settings.hidden_sizes[0],
            settings.num_layers,
            settings.expansion,
            settings.num_states,
            settings.num_taps,
            self.activation,
        )
