"""Settings of the convolutional network."""

from __future__ import annotations

from typing import ClassVar, Literal

from pi_incubator.config.network import HiddenSettings
from pi_incubator.config.section import Sizes


class CNNSettings(HiddenSettings):
    """Convolutions, one linear layer, and fully connected layers behind it."""

    sees_pixels: ClassVar[bool] = True

    name: Literal["cnn"] = "cnn"
    """Network: the name of a file in pi_incubator/networks."""
    channels: Sizes = (16, 32, 32)
    """Channels of each convolution."""
    hidden_sizes: Sizes = (64, 64)
    """Width of the encoder's features, then of each hidden layer of the heads, in units."""
