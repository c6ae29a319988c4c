"""Settings of minimal gated recurrent units."""

from __future__ import annotations

from typing import ClassVar, Literal

from pi_incubator.config.network import DependencySteps, NumLayers, StatefulSettings


class MinGRUSettings(StatefulSettings):
    """Minimal gated recurrent units in highways, and fully connected layers behind them."""

    embeds: ClassVar[bool] = True

    name: Literal["mingru"] = "mingru"
    """Network: the name of a file in pi_incubator/networks."""
    num_layers: NumLayers = 1
    """Recurrent layers, each as wide as the first of hidden_sizes."""
    dependency_steps: DependencySteps = 64
    """Longest dependency, in steps, that gates are initialized for."""
