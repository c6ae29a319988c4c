"""What the settings of FlashSAC and CrossQ share."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pi_incubator.config.algorithm import ReplaySettings
from pi_incubator.config.section import Count, Positive, cross_field_error

if TYPE_CHECKING:
    from pi_incubator.config.models import ExperimentConfig


class BatchNormSACSettings(ReplaySettings):
    """Soft actor-critic on networks with batch normalization."""

    keeps_batch_statistics: ClassVar[bool] = True
    unused: ClassVar[tuple[str, ...]] = ("network.init_log_std",)
    betas: ClassVar[tuple[float, float]] = (0.9, 0.999)
    """How slowly Adam forgets the mean and the square of the gradients."""

    lr: Positive = 3e-4
    """Learning rate of policy, critics and temperature at the start."""
    actor_every: Count = 2
    """Updates of the critics for each update of the policy."""
    initial_temperature: Positive = 0.01
    """Weight of the entropy beside the reward, before it is tuned."""

    def check(self, cfg: ExperimentConfig) -> None:
        super().check(cfg)
        if not cfg.network.needs_batch_statistics:
            raise cross_field_error(
                field="network.name",
                value=cfg.network.name,
                problem=f"algorithm {self.name} learns with batch normalization, which this network lacks",
                fix="set network.name to flash or batch_norm",
            )
