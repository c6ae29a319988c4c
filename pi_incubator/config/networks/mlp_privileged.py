"""Settings of perceptrons that see the privileged observation."""

from __future__ import annotations

from typing import Literal

from pi_incubator.config.network import Activation, NetworkSettings
from pi_incubator.config.section import Sizes


class PrivilegedMLPSettings(NetworkSettings):
    """Fully connected layers on the observation of the critic."""

    name: Literal["mlp_privileged"] = "mlp_privileged"
    """Network: the name of a file in pi_incubator/networks."""
    hidden_sizes: Sizes = (64, 64)
    """Width of each hidden layer, in units."""
    activation: Activation = "tanh"
    """Activation after each hidden layer."""
