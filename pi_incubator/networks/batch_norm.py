"""CrossQ's networks (Bhatt et al. 2024, arXiv 1902.05605): perceptrons with batch normalization."""

from __future__ import annotations

from torch import nn

from pi_incubator.config.networks.batch_norm import BatchNormSettings
from pi_incubator.layers.batch_norm_mlp import BatchNormMLP
from pi_incubator.layers.network import BatchNormNetwork
from pi_incubator.layers.stacked import StackedOutput
from pi_incubator.registry import network


@network("batch_norm")
class BatchNormalized(BatchNormNetwork[BatchNormSettings]):
    """All hidden layers as encoder, and one linear layer as head."""

    def trunk(self, num_inputs: int, copies: int | None = None) -> BatchNormMLP:
        settings = self.settings
        sizes = settings.hidden_sizes if copies is None else settings.critic_sizes
        return BatchNormMLP([num_inputs, *sizes], copies)

    def output(self, num_features: int, num_outputs: int, copies: int | None = None) -> nn.Module:
        return StackedOutput(num_features, num_outputs, copies)
