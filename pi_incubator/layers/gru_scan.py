"""A gated recurrent unit over whole sequences, with its gradient written out.

Only the products with the hidden state have to wait for one another. Forward does the others for all steps at
once, and backward keeps everything but five operations a step out of its loop. To `torch.compile` each
direction is one operator: unrolled, a sequence of 64 steps would compile for minutes.

Letters: T steps, N sequences, H hidden units. Gates lie in the order of torch's: reset, update, new.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pi_incubator.layers.encoder import restart_masks


def gru_scan(inputs: Tensor, state: Tensor, begins: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Hidden states `[T, N, H]` of Cho et al. 2014's unit, as `torch.nn.GRU` defines it.

        before     = 0 where begins[t], else hidden[t - 1], at first `state`
        r, u       = sigmoid(inputs[t, :2H] + (weight before + bias)[:2H])
        n          = tanh(inputs[t, 2H:] + r * (weight before + bias)[2H:])
        hidden[t]  = (1 - u) * n + u * before

    Differentiable once, by every tensor but `begins`.

    Args:
        inputs: `[T, N, 3H]`, the input's share of every gate, with its bias.
        state: `[N, H]` before the first step.
        begins: `[T, N]` bool, where a step is the first of an episode.
        weight: `[3H, H]` of the hidden state.
        bias: `[3H]` beside it.

    Raises:
        ValueError: `begins` or `state` is of other steps or sequences than `inputs`.
    """
    if begins.shape != inputs.shape[:2] or len(state) != inputs.shape[1]:
        shapes = f"begins {list(begins.shape)} and state {list(state.shape)}"
        raise ValueError(f"{shapes} do not belong to inputs {list(inputs.shape)}")
    # In full precision also under autocast: what is rounded in a recurrence is rounded T times.
    inputs, state = inputs.to(weight.dtype), state.to(weight.dtype)
    return _forward(inputs, state, begins, weight, bias)[0]


def _run_forward(
    inputs: Tensor, state: Tensor, begins: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`hidden`, the gates `[T, N, 3H]`, and the hidden state's share of the new gate `[T, N, H]`."""
    size = weight.shape[1]
    hidden, gates, recurrent = _make_outputs(inputs, size)
    product = torch.empty_like(inputs[0])
    ru_inputs, n_inputs = (part.unbind() for part in inputs.split([2 * size, size], -1))
    ru_gates, n_gates = (part.unbind() for part in gates.split([2 * size, size], -1))
    transposed = weight.t()
    with torch.autocast(inputs.device.type, enabled=False):
        for t, restart in enumerate(restart_masks(begins)):
            before = state if restart is None else state.masked_fill(restart, 0.0)
            torch.addmm(bias, before, transposed, out=product)
            recurrent[t].copy_(product[:, 2 * size :])
            ru = torch.add(ru_inputs[t], product[:, : 2 * size], out=ru_gates[t]).sigmoid_()
            n = torch.addcmul(n_inputs[t], ru[:, :size], recurrent[t], out=n_gates[t]).tanh_()
            state = torch.lerp(n, before, ru[:, size:], out=hidden[t])
    return hidden, gates, recurrent


def _run_backward(
    gradient: Tensor,
    hidden: Tensor,
    gates: Tensor,
    recurrent: Tensor,
    state: Tensor,
    begins: Tensor,
    weight: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients by inputs, state, weight and bias."""
    size = weight.shape[1]
    before = torch.cat((state[None], hidden[:-1])).masked_fill_(begins[..., None], 0.0)
    r, u, n = gates.split(size, -1)
    by_n = (1 - u) * (1 - n * n)  # what the new gate's argument takes of the hidden state's gradient
    by_products = torch.stack(
        (by_n * recurrent * r * (1 - r), (before - n) * u * (1 - u), by_n * r), 2
    )  # [T, N, 3, H], likewise for the three products with the state
    of_hidden, of_products = torch.empty_like(hidden), torch.empty_like(by_products)
    carried = torch.zeros_like(state)
    with torch.autocast(gradient.device.type, enabled=False):
        for t, restart in reversed(list(enumerate(restart_masks(begins)))):
            torch.add(carried, gradient[t], out=of_hidden[t])
            torch.mul(of_hidden[t, :, None], by_products[t], out=of_products[t])
            carried = torch.addmm(of_hidden[t] * u[t], of_products[t].flatten(1), weight)
            if restart is not None:
                carried.masked_fill_(restart, 0.0)
        of_products = of_products.flatten(2)
        flat = of_products.flatten(0, 1)
        of_weight = flat.t() @ before.flatten(0, 1)
    of_inputs = torch.cat((of_products[..., : 2 * size], of_hidden * by_n), -1)
    return of_inputs, carried, of_weight, flat.sum(0)


def _make_outputs(inputs: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    lead = inputs.shape[:2]
    return inputs.new_empty(*lead, size), inputs.new_empty(*lead, 3 * size), inputs.new_empty(*lead, size)


_forward = torch.library.custom_op("pi_incubator::gru_scan", _run_forward, mutates_args=())
_backward = torch.library.custom_op("pi_incubator::gru_scan_backward", _run_backward, mutates_args=())


@_forward.register_fake
def _(inputs, state, begins, weight, bias):  # type: ignore[no-untyped-def]
    return _make_outputs(inputs, weight.shape[1])


@_backward.register_fake
def _(gradient, hidden, gates, recurrent, state, begins, weight):  # type: ignore[no-untyped-def]
    likes = (gates, state, weight, weight[:, 0])
    return tuple(like.new_empty(like.shape) for like in likes)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    _, state, begins, weight, _ = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output, state, begins, weight)


def _differentiate(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    of_inputs, of_state, of_weight, of_bias = _backward(gradient, *ctx.saved_tensors)
    return of_inputs, of_state, None, of_weight, of_bias


_forward.register_autograd(_differentiate, setup_context=_save)
