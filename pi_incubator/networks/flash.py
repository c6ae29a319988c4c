"""FlashSAC's networks (Kim et al. 2026, arXiv 2604.04539): residual, with weights of unit norm."""

from __future__ import annotations

from torch import Tensor, nn

from pi_incubator.config.networks.flash import FlashSettings
from pi_incubator.layers.encoder import Encoder, StatelessEncoder
from pi_incubator.layers.flash import FlashTrunk, Moments
from pi_incubator.layers.network import Network
from pi_incubator.layers.unit_norm import UnitOutput
from pi_incubator.registry import network


@network("flash")
class Flash(Network[FlashSettings]):
    """A trunk of residual blocks as encoder, and one linear layer as head."""

    def encoder(self, group: str) -> Encoder:
        settings = self.settings
        trunk = FlashTrunk(
            self.spec.obs_dims[group], settings.actor_width, settings.num_blocks, settings.expansion
        )
        return FlashEncoder(trunk, settings.actor_width)

    def head(self, num_features: int, num_outputs: int, output_gain: float) -> nn.Module:
        return UnitOutput(num_features, num_outputs)

    def critics(self, num_critics: int, num_outputs: int) -> FlashCritics:
        """Critics of the group `critic_group` and the action."""
        settings = self.settings
        num_inputs = self.spec.obs_dims[self.critic_group] + self.spec.action_dim
        trunk = FlashTrunk(
            num_inputs, settings.critic_width, settings.num_blocks, settings.expansion, num_critics
        )
        return FlashCritics(trunk, UnitOutput(settings.critic_width, num_outputs, num_critics))


class FlashEncoder(StatelessEncoder):
    """A trunk that normalizes by its running moments, unless a training asks for more.

    Args:
        trunk: the layers.
        width: F, of its features.
    """

    def __init__(self, trunk: FlashTrunk, width: int) -> None:
        super().__init__()
        self.trunk, self.num_features = trunk, width

    def encode(self, observation: Tensor) -> Tensor:
        return self.trunk(observation)


class FlashCritics(nn.Module):
    """C critics side by side.

    Args:
        trunk: with C copies.
        head: the same.
    """

    def __init__(self, trunk: FlashTrunk, head: UnitOutput) -> None:
        super().__init__()
        self.trunk, self.head = trunk, head

    def forward(self, inputs: Tensor, moments: Moments = None) -> Tensor:
        """Observation and action `[K, B, D + A]` -> outputs `[C, K, B, F]`."""
        num_critics = len(self.head.weight)
        return self.head(self.trunk(inputs.expand(num_critics, *inputs.shape), moments))
