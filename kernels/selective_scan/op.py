"""The compiled scan as one node each way: an operator for torch.compile, an autograd function without it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels import dispatch

# Steps between two states that `forward` saves; `backward` makes those in between anew. A saved state is
# 4 * S / CHUNK bytes an element of x; a longer chunk needs more registers than a thread has.
CHUNK = 8


def run_forward(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    reset: Tensor | None,
    initial_state: Tensor | None,
    delta_softplus: bool,
    saves: bool,
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the final state, and, where `saves`, the state before each chunk; contiguous tensors, none empty."""
    module = dispatch.load("selective_scan", implementation, x.device.type, torch.float32)
    tensors = (x, delta, A, B, C, D, z, delta_bias, reset, initial_state)
    return module.forward(*tensors, delta_softplus, saves)


forward = torch.library.custom_op("pi_incubator::selective_scan", run_forward, mutates_args=())


@forward.register_fake
def _(x, delta, A, B, C, D, z, delta_bias, reset, initial_state, delta_softplus, saves, implementation):  # type: ignore[no-untyped-def]
    return make_outputs(x, A, saves)


def make_outputs(x: Tensor, A: Tensor, saves: bool) -> tuple[Tensor, Tensor, Tensor]:
    """What `forward` returns, unwritten: y like x, and states in float32.

    The last one, `[B, number of chunks, Dm * S]`, is the implementation's own: channels or states first.
    """
    num_batch, num_steps, num_channels = x.shape
    num_chunks = (num_steps + CHUNK - 1) // CHUNK if saves else 0
    final_state = x.new_empty(num_batch, *A.shape, dtype=torch.float32)
    saved = x.new_empty(num_batch, num_chunks, num_channels * A.shape[1], dtype=torch.float32)
    return x.new_empty(x.shape), final_state, saved


def run_backward(
    grad_y: Tensor | None,
    grad_final: Tensor | None,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    reset: Tensor | None,
    initial_state: Tensor | None,
    saved: Tensor,
    delta_softplus: bool,
    implementation: str,
) -> list[Tensor]:
    """Gradients by x, delta, A, B, C, D, z, delta_bias and initial_state; empty where the input is None."""
    module = dispatch.load("selective_scan", implementation, x.device.type, torch.float32)
    grad_y = torch.zeros_like(x) if grad_y is None else grad_y.contiguous()
    grad_final = None if grad_final is None else grad_final.contiguous()
    tensors = (x, delta, A, B, C, D, z, delta_bias, reset, initial_state)
    return module.backward(grad_y, grad_final, *tensors, saved, delta_softplus)


backward = torch.library.custom_op("pi_incubator::selective_scan_backward", run_backward, mutates_args=())


@backward.register_fake
def _(grad_y, grad_final, x, delta, A, B, C, D, z, delta_bias, reset, initial_state, *args):  # type: ignore[no-untyped-def]
    return make_gradients(x, delta, A, B, C, D, z, delta_bias, initial_state)


def make_gradients(*inputs: Tensor | None) -> list[Tensor]:
    """What `backward` returns, unwritten."""
    like = inputs[0]
    assert like is not None
    return [like.new_empty(0) if x is None else torch.empty_like(x) for x in inputs]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.delta_softplus, _, ctx.implementation = inputs
    saved = output[2]
    ctx.mark_non_differentiable(saved)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, saved)


def _differentiate(run: Any, ctx: Any, gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    """A gradient, or None, for each argument of `forward`."""
    tensors = ctx.saved_tensors
    found = run(*gradients[:2], *tensors, ctx.delta_softplus, ctx.implementation)
    found.insert(8, None)  # `reset` has none
    of_inputs = [None if x is None else gradient for x, gradient in zip(tensors, found, strict=False)]
    return *of_inputs, None, None, None


forward.register_autograd(
    lambda ctx, *gradients: _differentiate(backward, ctx, gradients), setup_context=_save
)


class Function(torch.autograd.Function):
    """`forward` without the operator."""

    @staticmethod
    def forward(ctx, *inputs):  # type: ignore[no-untyped-def]
        output = run_forward(*inputs)
        _save(ctx, inputs, output)
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *gradients):  # type: ignore[no-untyped-def]
        return _differentiate(run_backward, ctx, gradients)
