"""One optimizer step: gradients, their mean over the ranks, new weights; compiled, and captured on CUDA."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor

from pi_incubator import faults
from pi_incubator.compute import ComputePlan
from pi_incubator.distributed import Distributed
from pi_incubator.training.captured import CapturedStep, Step
from pi_incubator.training.compiled import compiled_step
from pi_incubator.training.skipped import SkippedUpdates, is_sound


class Phase(NamedTuple):
    """One set of weights, and how it moves."""

    gradients: Callable[[TensorDict], tuple[Sequence[Tensor], Tensor]]
    """Minibatch -> gradients, and a report `[K]` of metrics."""
    apply: Callable[[list[Tensor], Tensor], None]
    """Takes the gradients and changes the weights in place, if the second argument (0-dim bool) is true."""


def make_step(
    phases: Sequence[Phase], distributed: Distributed, compute: ComputePlan, skipped: SkippedUpdates
) -> Step:
    """A function from a minibatch to the reports of all phases, which takes one optimizer step.

    A phase whose loss or gradient is not finite changes no weight. All ranks see the same means, so all of
    them skip it.

    One process runs all phases as one compiled function. Several compile gradients and application, and
    exchange gradients and report in between. On CUDA the whole step, with the exchange, is one graph.

    Args:
        phases: run one after the other; each sees the weights that the ones before it have changed.
        distributed: the ranks to average over.
        compute: whether to compile, and the device.
        skipped: counts the phases that changed nothing.
    """
    spoils = faults.PLAN is not None and faults.PLAN.names("grad")
    compiled, alone = compute.compiled and not spoils, distributed.world_size == 1
    if compiled and not alone:
        phases = [Phase(compiled_step(phase.gradients), compiled_step(phase.apply)) for phase in phases]

    def step(minibatch: TensorDict) -> Tensor:
        reports = []
        for phase in phases:
            gradients, report = phase.gradients(minibatch)
            if spoils:
                gradients = _spoiled(gradients)
            *means, report = distributed.mean([*gradients, report])
            sound = is_sound(means, report)
            phase.apply(means, sound)
            skipped.note(sound)
            reports.append(report)
        return torch.cat(reports)

    chosen = compiled_step(step) if compiled and alone else step
    captures = compute.device.type == "cuda" and distributed.can_be_captured and not spoils
    return CapturedStep(chosen) if captures else chosen


def _spoiled(gradients: Sequence[Tensor]) -> Sequence[Tensor]:
    """Gradients with the number that `PI_FAULT` asks for, where one is due."""
    assert faults.PLAN is not None
    faults.PLAN.reach("grad")
    value = faults.PLAN.value("grad")
    return gradients if value is None else [torch.full_like(gradient, value) for gradient in gradients]
