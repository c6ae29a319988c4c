"""Settings of gated recurrent units."""

from __future__ import annotations

from typing import Literal

from pi_incubator.config.network import DependencySteps, StatefulSettings


class GRUSettings(StatefulSettings):
    """A recurrent layer, and fully connected layers behind it."""

    name: Literal["gru"] = "gru"
    """Network: the name of a file in pi_incubator/networks."""
    dependency_steps: DependencySteps | None = None
    """Longest dependency, in steps, that gates are initialized for; null begins with gates half open."""
