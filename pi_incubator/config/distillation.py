"""What an experiment file may say about distillation: the section of this name, which `pi-distill` reads."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pi_incubator.config.section import Section, cross_field_error

Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(min_length=1)]


class DistillationSection(Section):
    """How a student learns from trained policies."""

    teachers: Annotated[tuple[Name, ...], Field(strict=False)] = ()
    """Folders of the teachers' runs; --teacher sets it."""
    weights: Annotated[tuple[Positive, ...], Field(strict=False)] = ()
    """Share of the worlds that each teacher's task gets, in any unit; empty shares them equally."""
    dataset: Name | None = None
    """Recorded demonstrations to learn from instead of worlds; --offline sets it."""
    loss: Literal["kl", "mse"] = "kl"
    """kl from the teacher's to the student's action distribution, or mse of means in the teacher's std."""
    value_coef: NonNegative = 0.0
    """Weight of the share of the teacher's value that the student's leaves unexplained."""
    feature_coef: NonNegative = 0.0
    """Weight of the same for the actor's last hidden layer, seen through a linear map."""
    teacher_phase: Fraction = 0.3
    """Part of the run in which the share of worlds that the teacher leads falls from 1 to 0."""
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
    """gather the student's own moments of observations, or keep those of the (first) teacher."""
    fake_quantize: Literal["none", "int8"] = "none"
    """int8 rounds the actor's weights and activations in the last part of the run, for quantized export."""
    fake_quantize_phase: Fraction = 0.3
    """The last part of the run that int8 rounds in."""

    @model_validator(mode="after")
    def _fits_the_teachers(self) -> DistillationSection:
        if self.weights and len(self.weights) != len(self.teachers):
            raise cross_field_error(
                field="distillation.weights",
                value=list(self.weights),
                problem=f"{len(self.weights)} weights for {len(self.teachers)} teachers",
                fix="give one for each --teacher, in their order, or leave it empty",
            )
        if self.feature_coef and len(self.teachers) > 1:
            raise cross_field_error(
                field="distillation.feature_coef",
                value=self.feature_coef,
                problem=f"{len(self.teachers)} teachers share no features",
                fix="set it to 0, or name one teacher",
            )
        return self
