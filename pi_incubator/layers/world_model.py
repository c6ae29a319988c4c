"""A network that is a world model: the encoder that acts, and the heads that it is trained with.

Letters: B samples, D observation width, S width of h, F features, Z bins.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, TypeVar

from torch import Tensor, nn

from pi_incubator.config.rssm import RSSMSettings
from pi_incubator.layers.encoder import StatelessEncoder
from pi_incubator.layers.network import GroupNetwork
from pi_incubator.layers.norm_mlp import norm_mlp
from pi_incubator.layers.rssm import Prior, RSSMEncoder
from pi_incubator.layers.two_hot import symlog

Settings = TypeVar("Settings", bound=RSSMSettings)


class WorldModelNetwork(GroupNetwork[Settings]):
    """An RSSM; policy, critic and all predictions read its features."""

    shares_encoder = True

    @property
    def critic_group(self) -> str:
        return self.actor_group

    @abstractmethod
    def embed(self) -> StatelessEncoder:
        """A new encoder of single observations."""

    @abstractmethod
    def decoder(self, num_features: int) -> nn.Module:
        """A new network from features `[B, F]` to what `decoder_target` makes of observations."""

    def decoder_target(self, observation: Tensor) -> Tensor:
        """What the decoder is trained towards, `[B, ...]`, for normalized observations `[B, D]`."""
        return symlog(observation)

    def encoder(self, group: str) -> RSSMEncoder:
        settings = self.settings
        latents, width = (settings.num_latents, settings.num_classes), settings.hidden_sizes[-1]
        return RSSMEncoder(self.embed(), self.spec.action_dim, settings.recurrent_size, latents, width)

    def head(self, num_features: int, num_outputs: int, output_gain: float) -> nn.Module:
        return norm_mlp((num_features, *self.settings.hidden_sizes, num_outputs), output_gain)

    def predictions(self, num_bins: int) -> Predictions:
        """What is learned beside the encoder to make it a world model."""
        return Predictions(self, num_bins)


class Predictions(nn.Module):
    """Prior, and heads for the observation, the reward `[Z]` and whether the episode goes on.

    The head of the reward begins with zeros: early guesses of large rewards would mislead the policy.

    Args:
        network: builds them.
        num_bins: Z, of the reward's distribution.
    """

    def __init__(self, network: WorldModelNetwork[Any], num_bins: int) -> None:
        super().__init__()
        settings: RSSMSettings = network.settings
        latents = (settings.num_latents, settings.num_classes)
        num_features = settings.recurrent_size + latents[0] * latents[1]
        self.prior = Prior(settings.recurrent_size, latents, settings.hidden_sizes[-1])
        self.observation = network.decoder(num_features)
        self.reward = network.head(num_features, num_bins, output_gain=0.0)
        self.goes_on = network.head(num_features, 1, output_gain=1.0)
