"""What the settings of algorithms share that learn from recorded steps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from pi_incubator.config.algorithm import ReplaySettings
from pi_incubator.config.section import Count, Fraction, cross_field_error
from pi_incubator.config.without_effect import is_default, shown, training_worlds_only, value_of

if TYPE_CHECKING:
    from pi_incubator.config.models import ExperimentConfig


def is_same_place(one: str, other: str) -> bool:
    """Whether two names are one folder."""
    return Path(one).resolve() == Path(other).resolve()


ONLINE = ("horizon", "updates_per_step", "buffer_size", "save_buffer", "dataset_share")
"""Settings of what follows the updates on the dataset alone."""


class OfflineSettings(ReplaySettings):
    """Settings of an algorithm that learns from a dataset, and may then go on in worlds."""

    reads_dataset: ClassVar[bool] = True
    unused: ClassVar[tuple[str, ...]] = ("training.overlap", "algorithm.learning_starts")

    offline_updates: Annotated[int, Field(ge=0, le=2**31 - 1)] = 100_000
    """Optimizer steps on the dataset alone, before training.total_steps are collected."""
    updates_per_iteration: Count = 100
    """Optimizer steps of one iteration while no world is stepped."""
    dataset_share: Fraction = 0.5
    """Share of a minibatch that is of the dataset, once worlds are stepped."""
    replay: Literal["uniform"] = "uniform"
    """How minibatches are sampled: each step is equally likely."""
    learning_starts: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """Always 0: a policy that has learned offline needs no random actions."""

    def num_offline_iterations(self) -> int:
        """Whole iterations on the dataset alone."""
        return self.offline_updates // self.updates_per_iteration

    def num_iterations(self, cfg: ExperimentConfig, world_size: int) -> int:
        return self.num_offline_iterations() + super().num_iterations(cfg, world_size)

    def stored_steps(self, cfg: ExperimentConfig) -> int:
        # Those of the dataset are not known here.
        return min(self.buffer_size, max(cfg.training.total_steps, cfg.env.num_envs))

    def check(self, cfg: ExperimentConfig) -> None:
        if cfg.dataset.path is None:
            problem = f"algorithm {self.name} learns from recorded steps"
            fix = "set dataset=FOLDER, of what training.record or pi-data import wrote, or dataset=store:PATH"
            raise cross_field_error(field="dataset.path", value="null", problem=problem, fix=fix)
        if cfg.training.record is not None and is_same_place(cfg.training.record, cfg.dataset.path):
            problem = "is the dataset that is learned from, which must not change while it is read"
            raise cross_field_error(
                field="training.record", value=cfg.training.record, problem=problem, fix="name another folder"
            )
        super().check(cfg)

    def check_num_envs(self, cfg: ExperimentConfig) -> None:
        if cfg.training.total_steps or not self.num_offline_iterations():
            super().check_num_envs(cfg)

    def _check_network(self, cfg: ExperimentConfig) -> None:
        if cfg.network.has_state:
            problem = f"it has a state, and algorithm {self.name} learns from single steps"
            fix = "name a network without a state"
            raise cross_field_error(field="network.name", value=cfg.network.name, problem=problem, fix=fix)
        super()._check_network(cfg)

    def _check_learns(self, cfg: ExperimentConfig) -> None:
        if 0 < self.offline_updates < self.updates_per_iteration:
            raise cross_field_error(
                field="algorithm.offline_updates",
                value=self.offline_updates,
                problem=f"is less than one iteration of algorithm.updates_per_iteration = "
                f"{self.updates_per_iteration}",
                fix="raise it, or lower that",
            )
        if cfg.training.total_steps:
            super()._check_learns(cfg)
        else:
            self._check_without_worlds(cfg)

    def _check_without_worlds(self, cfg: ExperimentConfig) -> None:
        """Refuse what only training worlds read."""
        of_worlds = (*(f"algorithm.{key}" for key in ONLINE), "training.record", *training_worlds_only())
        for field in of_worlds:
            if not is_default(cfg, field):
                raise cross_field_error(
                    field=field,
                    value=shown(value_of(cfg, field)),
                    problem="has no effect with training.total_steps = 0: no world is stepped",
                    fix="remove it, or set training.total_steps",
                )
