"""Settings of multilayer perceptrons."""

from __future__ import annotations

from typing import Literal

from pi_incubator.config.network import HiddenSettings


class MLPSettings(HiddenSettings):
    """Fully connected layers."""

    name: Literal["mlp"] = "mlp"
    """Network: the name of a file in pi_incubator/networks."""
