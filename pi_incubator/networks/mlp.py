"""Multilayer perceptrons: nothing is shared between policy and critics."""

from __future__ import annotations

from torch import nn

from pi_incubator.config.networks.mlp import MLPSettings
from pi_incubator.layers.encoder import Encoder, Identity
from pi_incubator.layers.mlp import ACTIVATIONS, mlp
from pi_incubator.layers.network import GroupNetwork
from pi_incubator.registry import network


@network("mlp")
class MLP(GroupNetwork[MLPSettings]):
    """Heads with all of `hidden_sizes`, directly on the observation."""

    def encoder(self, group: str) -> Encoder:
        return Identity(self.spec.obs_dims[group])

    def head(self, num_features: int, num_outputs: int, output_gain: float) -> nn.Module:
        sizes = [num_features, *self.settings.hidden_sizes, num_outputs]
        return mlp(sizes, ACTIVATIONS[self.settings.activation], output_gain)
