"""Settings of gated recurrent units."""

from __future__ import annotations

from typing import Literal

from pi_incubator.config.network import MemorySettings, MemorySteps


class GRUSettings(MemorySettings):
    """A recurrent layer, and fully connected layers behind it."""

    name: Literal["gru"] = "gru"
    """Network: the name of a file in pi_incubator/networks."""
    memory_steps: MemorySteps | None = None
    """Longest memory, in steps, that gates are initialized for; null begins with gates half open."""
