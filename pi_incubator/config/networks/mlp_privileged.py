"""Settings of perceptrons that see the privileged observation."""

from __future__ import annotations

from typing import Literal

from pi_incubator.config.network import HiddenSettings


class PrivilegedMLPSettings(HiddenSettings):
    """Fully connected layers on the observation of the critic."""

    name: Literal["mlp_privileged"] = "mlp_privileged"
    """Network: the name of a file in pi_incubator/networks."""
