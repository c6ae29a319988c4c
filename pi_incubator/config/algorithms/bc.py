"""Settings of behavioral cloning."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pi_incubator.config.offline import OfflineSettings
from pi_incubator.config.section import Positive, cross_field_error

if TYPE_CHECKING:
    from pi_incubator.config.models import ExperimentConfig


class BCSettings(OfflineSettings):
    """Behavioral cloning: the policy learns the actions of a dataset; rewards do not count."""

    num_networks: ClassVar[int] = 1
    unused: ClassVar[tuple[str, ...]] = (*OfflineSettings.unused, "algorithm.gamma", "algorithm.n_step")

    name: Literal["bc"] = "bc"
    """Algorithm: the name of a file in pi_incubator/algorithms."""
    lr: Positive = 3e-4
    """Learning rate."""

    def check(self, cfg: ExperimentConfig) -> None:
        super().check(cfg)
        if cfg.training.total_steps:
            raise cross_field_error(
                field="training.total_steps",
                value=cfg.training.total_steps,
                problem="has no effect with algorithm.name = bc, which learns nothing from its own steps",
                fix="set it to 0",
            )
