"""Settings of minimal gated recurrent units."""

from __future__ import annotations

from typing import ClassVar, Literal

from pi_incubator.config.network import MemorySettings, MemorySteps, NumLayers


class MinGRUSettings(MemorySettings):
    """Minimal gated recurrent units in highways, and fully connected layers behind them."""

    embeds: ClassVar[bool] = True

    name: Literal["mingru"] = "mingru"
    """Network: the name of a file in pi_incubator/networks."""
    num_layers: NumLayers = 1
    """Recurrent layers, each as wide as the first of hidden_sizes."""
    memory_steps: MemorySteps = 64
    """Longest memory, in steps, that gates are initialized for."""
