"""Gated transformers (Parisotto et al. 2020); policy and critics share no layers."""

from __future__ import annotations

from pi_incubator.config.networks.transformer import TransformerSettings
from pi_incubator.layers.encoder import Encoder
from pi_incubator.layers.network import EncoderNetwork
from pi_incubator.layers.transformer import TransformerEncoder
from pi_incubator.registry import network


@network("transformer")
class Transformer(EncoderNetwork[TransformerSettings]):
    """The first of `hidden_sizes` is the width of the stream, the others layers of the heads behind it."""

    def encoder(self, group: str) -> Encoder:
        settings = self.settings
        return TransformerEncoder(
            self.spec.obs_dims[group],
            settings.hidden_sizes[0],
            settings.num_layers,
            settings.num_heads,
            settings.window,
            settings.expansion,
            self.activation,
        )
