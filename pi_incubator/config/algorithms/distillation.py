"""Settings of distillation: trained policies teach a student. `pi-distill` sets some of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from pi_incubator.config.algorithm import RolloutSettings
from pi_incubator.config.section import Count, Fraction, Name, NonNegative, Positive, cross_field_error
from pi_incubator.config.without_effect import is_default, shown, training_worlds_only, value_of

if TYPE_CHECKING:
    from pi_incubator.config.models import ExperimentConfig


ONLINE = ("weights", "teacher_phase", "exploration", "buffer_size")
"""Settings of the collection."""


class DistillationSettings(RolloutSettings):
    """How a student learns from trained policies."""

    storage_field: ClassVar[str] = "algorithm.buffer_size"
    has_gaussian_policy: ClassVar[bool] = True
    unused: ClassVar[tuple[str, ...]] = (
        "training.overlap",
        "training.record",
        "compute.autocast",
        "compute.shards",
    )
    runs_read: ClassVar[tuple[str, ...]] = ("teachers",)
    files_read: ClassVar[tuple[str, ...]] = ("dataset",)
    files_written: ClassVar[tuple[str, ...]] = ("record",)

    name: Literal["distillation"] = "distillation"
    """Algorithm: the name of a file in pi_incubator/algorithms."""
    teachers: Annotated[tuple[Name, ...], Field(strict=False)] = ()
    """Folders of the teachers' runs; --teacher sets it."""
    weights: Annotated[tuple[Positive, ...], Field(strict=False)] = ()
    """Share of the worlds that each teacher's task gets, in any unit; empty shares them equally."""
    dataset: Name | None = None
    """Recorded demonstrations to learn from instead of worlds; --offline sets it."""
    record: Name | None = None
    """File to write the collected steps to as demonstrations; --record sets it."""
    loss: Literal["kl", "mse"] = "kl"
    """kl from the teacher's to the student's action distribution, or mse of means in the teacher's std."""
    value_coef: NonNegative = 0.0
    """Weight of the share of the teacher's value that the student's leaves unexplained."""
    feature_coef: NonNegative = 0.0
    """Weight of the same for the actor's last hidden layer, seen through a linear map."""
    teacher_phase: Fraction = 0.3
    """Part of the run in which the share of worlds that the teacher acts in falls from 1 to 0."""
    exploration: NonNegative = 0.5
    """Factor on the standard deviation of actions while worlds are stepped; 0 takes the means."""
    buffer_size: Count = 250_000
    """Newest steps that are learned from, over all teachers; at least those of one iteration."""
    num_updates: Count = 100
    """Optimizer steps of one iteration."""
    minibatch_size: Count = 512
    """Steps in the minibatch of one optimizer step."""
    lr: Positive = 2e-3
    """Learning rate, which falls linearly to zero over the run."""
    max_grad_norm: Positive = 1.0
    """Gradients with a larger global L2 norm are scaled down to it."""
    normalizer: Literal["gather", "teacher"] = "gather"
    """gather the student's own moments of observations, or keep those of the first teacher."""
    fake_quantize: Literal["none", "int8"] = "none"
    """int8 rounds the actor's weights and activations in the last part of the run, for quantized export."""
    fake_quantize_phase: Fraction = 0.3
    """The last part of the run that int8 rounds in."""

    def stored_steps(self, cfg: ExperimentConfig) -> int:
        return self.buffer_size

    @property
    def saves_steps(self) -> bool:
        return self.dataset is None  # which is read again

    def samples_per_update(self, num_envs: int) -> int:
        return self.minibatch_size

    def check(self, cfg: ExperimentConfig) -> None:
        if not self.teachers:
            raise _error("teachers", [], "names no teacher", "name the folder of a trained run")
        if self.weights and len(self.weights) != len(self.teachers):
            problem = f"{len(self.weights)} weights for {len(self.teachers)} teachers"
            fix = "give one for each --teacher, in their order, or leave it empty"
            raise _error("weights", list(self.weights), problem, fix)
        if self.feature_coef and len(self.teachers) > 1:
            problem = f"{len(self.teachers)} teachers share no features"
            raise _error("feature_coef", self.feature_coef, problem, "set it to 0, or name one teacher")
        if self.record and self.dataset:
            problem = "nothing is collected where algorithm.dataset is given"
            raise _error("record", self.record, problem, "leave one of the two out")
        if self.normalizer == "teacher" and not cfg.network.normalize_observations:
            problem = "has no effect with network.normalize_observations = false"
            raise _error("normalizer", self.normalizer, problem, "remove it")
        if self.loss == "mse" and cfg.network.state_dependent_std:
            raise cross_field_error(
                field="network.state_dependent_std",
                value=True,
                problem="has no effect with algorithm.loss = mse, which leaves the standard deviation alone",
                fix="remove it, or set algorithm.loss to kl",
            )
        if self.fake_quantize == "none" and not is_default(cfg, "algorithm.fake_quantize_phase"):
            problem, fix = (
                "has no effect with algorithm.fake_quantize = none",
                "remove it, or set that to int8",
            )
            raise _error("fake_quantize_phase", self.fake_quantize_phase, problem, fix)
        if self.dataset:
            self._check_offline(cfg)
        if cfg.network.has_state:
            self._check_recurrent_student()

    def check_num_envs(self, cfg: ExperimentConfig) -> None:
        num_envs, num_teachers = cfg.env.num_envs, len(self.teachers)
        if num_envs < num_teachers:
            problem, fix = f"each of {num_teachers} teachers needs a world", f"set it to {num_teachers}"
            raise cross_field_error(field="env.num_envs", value=num_envs, problem=problem, fix=fix)
        steps = self.steps_per_iteration(num_envs)
        if self.dataset is None and self.buffer_size < steps:
            problem = f"is less than the {steps} steps of one iteration"
            raise _error("buffer_size", self.buffer_size, problem, f"set it to at least {steps}")
        super().check_num_envs(cfg)

    def _check_offline(self, cfg: ExperimentConfig) -> None:
        """Refuse what is about the steps of worlds, of which none are collected."""
        for field in (*(f"algorithm.{key}" for key in ONLINE), *training_worlds_only()):
            if not is_default(cfg, field):
                value = shown(value_of(cfg, field))
                problem = "has no effect with algorithm.dataset (--offline): no world is stepped"
                raise cross_field_error(field=field, value=value, problem=problem, fix="remove it")

    def _check_recurrent_student(self) -> None:
        """Refuse what a student that carries a state cannot do."""
        sequences = "holds single steps, and a recurrent student learns from sequences"
        if self.dataset:
            raise _error("dataset", self.dataset, sequences, "learn online")
        if self.record:
            raise _error("record", self.record, sequences, "leave it out")
        if self.fake_quantize != "none":
            problem = "rounds the layers of an mlp, not the gates of a recurrent layer"
            raise _error("fake_quantize", self.fake_quantize, problem, "set it to none")


def _error(key: str, value: object, problem: str, fix: str) -> Exception:
    return cross_field_error(field=f"algorithm.{key}", value=value, problem=problem, fix=fix)
