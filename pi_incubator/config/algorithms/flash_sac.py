"""Settings of FlashSAC."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pi_incubator.config.batch_norm_sac import BatchNormSACSettings
from pi_incubator.config.section import Positive


class FlashSACSettings(BatchNormSACSettings):
    """Soft actor-critic with categorical critics on residual networks of fixed norm."""

    num_networks: ClassVar[int] = 5

    name: Literal["flash_sac"] = "flash_sac"
    """Algorithm: the name of a file in pi_incubator/algorithms."""
    updates_per_step: Annotated[float, Field(gt=0, le=10_000)] = 0.5
    """Optimizer steps for each environment step, over all worlds."""
    lr_end: Positive = 1.5e-4
    """Learning rate at the end; half a period of a cosine leads there."""
    tau: Annotated[float, Field(gt=0, le=1)] = 0.01
    """Share of the critics that their targets take over at each update."""
    target_std: Positive = 0.15
    """The temperature is tuned to the entropy of a Gaussian so wide, in halves of the action's range."""
    num_bins: Annotated[int, Field(ge=2, le=1001)] = 101
    """Values that a critic gives a probability each."""
    largest_value: Positive = 5.0
    """The bins reach from -largest_value to largest_value; rewards are scaled so that returns fit."""
    noise_repeat: Annotated[int, Field(ge=1, le=2**16)] = 16
    """Most steps in a row with the same exploration noise; 1 makes it new at every step."""
