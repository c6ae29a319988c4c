"""Settings of gated recurrent units."""

from __future__ import annotations

from typing import ClassVar, Literal

from pi_incubator.config.network import Activation, NetworkSettings
from pi_incubator.config.section import Sizes


class GRUSettings(NetworkSettings):
    """A recurrent layer, and fully connected layers behind it."""

    has_state: ClassVar[bool] = True

    name: Literal["gru"] = "gru"
    """Network: the name of a file in pi_incubator/networks."""
    hidden_sizes: Sizes = (64, 64)
    """Width of the recurrent layer, then of each hidden layer behind it, in units."""
    activation: Activation = "tanh"
    """Activation after each hidden layer."""
