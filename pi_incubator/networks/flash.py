"""FlashSAC's networks (Kim et al. 2026, arXiv 2604.04539): residual, with weights of unit norm."""

from __future__ import annotations

from torch import nn

from pi_incubator.config.networks.flash import FlashSettings
from pi_incubator.layers.flash import FlashTrunk
from pi_incubator.layers.network import BatchNormNetwork
from pi_incubator.layers.unit_norm import UnitOutput
from pi_incubator.registry import network


@network("flash")
class Flash(BatchNormNetwork[FlashSettings]):
    """A trunk of residual blocks as encoder, and one linear layer as head."""

    def trunk(self, num_inputs: int, copies: int | None = None) -> FlashTrunk:
        settings = self.settings
        width = settings.actor_width if copies is None else settings.critic_width
        return FlashTrunk(num_inputs, width, settings.num_blocks, settings.expansion, copies)

    def output(self, num_features: int, num_outputs: int, copies: int | None = None) -> nn.Module:
        return UnitOutput(num_features, num_outputs, copies)
