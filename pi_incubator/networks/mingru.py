"""Minimal gated recurrent units (Feng et al. 2024); policy and critics share no layers."""

from __future__ import annotations

from pi_incubator.config.networks.mingru import MinGRUSettings
from pi_incubator.layers.encoder import Encoder
from pi_incubator.layers.mingru import MinGRUEncoder
from pi_incubator.layers.network import EncoderNetwork
from pi_incubator.registry import network


@network("mingru")
class MinGRU(EncoderNetwork[MinGRUSettings]):
    """The first of `hidden_sizes` is the width of recurrent layers, the others are layers of the heads."""

    def encoder(self, group: str) -> Encoder:
        settings = self.settings
        return MinGRUEncoder(
            self.spec.obs_dims[group],
            settings.hidden_sizes[0],
            settings.num_layers,
            settings.dependency_steps,
            self.activation,
        )
