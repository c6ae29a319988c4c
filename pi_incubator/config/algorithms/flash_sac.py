"""Settings of FlashSAC."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from pi_incubator.config.algorithm import ReplaySettings
from pi_incubator.config.section import Count, Positive, cross_field_error

if TYPE_CHECKING:
    from pi_incubator.config.models import ExperimentConfig


class FlashSACSettings(ReplaySettings):
    """Soft actor-critic with categorical critics on residual networks of fixed norm."""

    num_networks: ClassVar[int] = 5
    keeps_batch_statistics: ClassVar[bool] = True
    unused: ClassVar[tuple[str, ...]] = ("training.overlap", "network.init_log_std")

    name: Literal["flash_sac"] = "flash_sac"
    """Algorithm: the name of a file in pi_incubator/algorithms."""
    updates_per_step: Annotated[float, Field(gt=0, le=10_000)] = 0.5
    """Optimizer steps for each environment step, over all worlds."""
    lr: Positive = 3e-4
    """Learning rate of policy, critics and temperature at the start."""
    lr_end: Positive = 1.5e-4
    """The same at the end; half a period of a cosine leads there."""
    tau: Annotated[float, Field(gt=0, le=1)] = 0.01
    """Share of the critics that their targets take over at each update."""
    actor_every: Count = 2
    """Updates of the critics for each update of the policy."""
    initial_temperature: Positive = 0.01
    """Weight of the entropy beside the reward, before it is tuned."""
    target_std: Positive = 0.15
    """The temperature is tuned to the entropy of a Gaussian so wide, in halves of the action's range."""
    num_bins: Annotated[int, Field(ge=2, le=1001)] = 101
    """Values that a critic gives a probability each."""
    largest_value: Positive = 5.0
    """The bins reach from -largest_value to largest_value; rewards are scaled so that returns fit."""
    noise_repeat: Annotated[int, Field(ge=1, le=2**16)] = 16
    """Most steps in a row with the same exploration noise; 1 makes it new at every step."""

    def check(self, cfg: ExperimentConfig) -> None:
        super().check(cfg)
        if not cfg.network.needs_batch_statistics:
            raise cross_field_error(
                field="network.name",
                value=cfg.network.name,
                problem="algorithm flash_sac learns with batch normalization, which this network lacks",
                fix="set network.name to flash",
            )
