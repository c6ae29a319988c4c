"""Settings of long short-term memory."""

from __future__ import annotations

from typing import Literal

from pi_incubator.config.network import DependencySteps, StatefulSettings


class LSTMSettings(StatefulSettings):
    """A layer of long short-term memory, and fully connected layers behind it."""

    name: Literal["lstm"] = "lstm"
    """Network: the name of a file in pi_incubator/networks."""
    dependency_steps: DependencySteps = 64
    """Longest dependency, in steps, that gates are initialized for."""
