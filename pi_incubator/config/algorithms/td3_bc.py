"""Settings of TD3 with behavioral cloning."""

from __future__ import annotations

from typing import ClassVar, Literal

from pi_incubator.config.algorithms.td3 import TD3Settings
from pi_incubator.config.offline import OfflineSettings
from pi_incubator.config.section import Positive


class TD3BCSettings(OfflineSettings, TD3Settings):
    """TD3 whose policy is also drawn towards the recorded actions."""

    unused: ClassVar[tuple[str, ...]] = (*OfflineSettings.unused, *TD3Settings.unused)

    name: Literal["td3_bc"] = "td3_bc"  # type: ignore[assignment]  # another name than that of the base
    """Algorithm: the name of a file in pi_incubator/algorithms."""
    value_weight: Positive = 2.5
    """Weight of the critics' value beside cloning, in units of the mean absolute value of a minibatch."""
