"""Settings of implicit Q-learning."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pi_incubator.config.offline import OfflineSettings
from pi_incubator.config.section import NonNegative, Positive


class IQLSettings(OfflineSettings):
    """Implicit Q-learning: no value of an action that the data does not hold is ever needed."""

    num_networks: ClassVar[int] = 6

    name: Literal["iql"] = "iql"
    """Algorithm: the name of a file in pi_incubator/algorithms."""
    lr_actor: Positive = 3e-4
    """Learning rate of the policy."""
    lr_critic: Positive = 3e-4
    """Learning rate of the critics and of the value of states."""
    tau: Annotated[float, Field(gt=0, le=1)] = 0.005
    """Share of the critics that their targets take over at each update."""
    expectile: Annotated[float, Field(gt=0, lt=1)] = 0.7
    """Which expectile of the critics' values a state's value is: 0.5 is the mean, 1 would be the maximum."""
    inverse_temperature: NonNegative = 3.0
    """How much the policy prefers actions with a larger advantage; 0 clones the data."""
    reward_scale: Positive = 1.0
    """Factor on the reward that the algorithm sees; reported returns are not scaled."""
