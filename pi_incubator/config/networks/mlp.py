"""Settings of multilayer perceptrons."""

from __future__ import annotations

from typing import Literal

from pi_incubator.config.network import Activation, NetworkSettings
from pi_incubator.config.section import Sizes


class MLPSettings(NetworkSettings):
    """Fully connected layers."""

    name: Literal["mlp"] = "mlp"
    """Network: the name of a file in pi_incubator/networks."""
    hidden_sizes: Sizes = (64, 64)
    """Width of each hidden layer, in units."""
    activation: Activation = "tanh"
    """Activation after each hidden layer."""
