"""One optimizer step: gradients, their mean over the ranks, new weights; compiled, and captured on CUDA."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tensordict import TensorDict
from torch import Tensor

from pi_incubator.compute import ComputePlan
from pi_incubator.distributed import Distributed
from pi_incubator.training.captured import CapturedStep
from pi_incubator.training.compiled import compiled_step

Gradients = Callable[[TensorDict], tuple[Sequence[Tensor], Tensor]]
Apply = Callable[[list[Tensor]], None]
Step = Callable[[TensorDict], Tensor]


def make_step(gradients: Gradients, apply: Apply, distributed: Distributed, compute: ComputePlan) -> Step:
    """A function from a minibatch to a report, which takes one optimizer step.

    One process runs it as one compiled function. Several compile the two halves, and exchange gradients and
    report in between. On CUDA the whole step, the exchange included, is captured as one graph.

    Args:
        gradients: minibatch -> gradients and a report, a tensor of metrics.
        apply: takes the gradients and changes the weights in place.
        distributed: the ranks to average over.
        compute: whether to compile, and the device.
    """
    if distributed.world_size == 1:
        step = _alone(gradients, apply, compute.compiled)
    else:
        step = _together(gradients, apply, distributed, compute.compiled)
    return CapturedStep(step) if compute.device.type == "cuda" else step


def _alone(gradients: Gradients, apply: Apply, compiled: bool) -> Step:
    def step(minibatch: TensorDict) -> Tensor:
        grads, report = gradients(minibatch)
        apply(list(grads))
        return report

    return compiled_step(step) if compiled else step


def _together(gradients: Gradients, apply: Apply, distributed: Distributed, compiled: bool) -> Step:
    if compiled:
        gradients, apply = compiled_step(gradients), compiled_step(apply)

    def step(minibatch: TensorDict) -> Tensor:
        grads, report = gradients(minibatch)
        *means, report = distributed.mean([*grads, report])
        apply(means)
        return report

    return step
