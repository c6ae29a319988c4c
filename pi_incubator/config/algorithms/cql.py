"""Settings of conservative Q-learning."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pi_incubator.config.algorithms.sac import SACSettings
from pi_incubator.config.offline import OfflineSettings
from pi_incubator.config.section import NonNegative


class CQLSettings(OfflineSettings, SACSettings):
    """Soft actor-critic whose critics give low values to actions that the data does not hold."""

    takes_choices: ClassVar[bool] = False
    unused: ClassVar[tuple[str, ...]] = (
        *OfflineSettings.unused,
        *SACSettings.unused,
        "algorithm.entropy_share",
    )

    name: Literal["cql"] = "cql"  # type: ignore[assignment]  # another name than that of the base
    """Algorithm: the name of a file in pi_incubator/algorithms."""
    conservative_weight: NonNegative = 5.0
    """Weight of the conservative term in the critics' loss; 0 is soft actor-critic."""
    num_actions: Annotated[int, Field(ge=1, le=1000)] = 10
    """Actions of each kind for a sample of that term: uniform, the policy's here and in the next state."""
