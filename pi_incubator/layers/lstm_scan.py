"""Long short-term memory over whole sequences, with its gradient written out; see `gru_scan` for the reasons.

Letters: T steps, N sequences, H hidden units. Gates lie in the order of torch's: input, forget, new, output.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pi_incubator.layers.encoder import restart_masks


def lstm_scan(
    inputs: Tensor, hidden: Tensor, cell: Tensor, begins: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Hidden states and cells `[T, N, H]` of Gers et al. 2000's unit, as `torch.nn.LSTM` defines it.

        h, c      = 0 where begins[t], else hidden[t - 1] and cell[t - 1], at first those given
        i, f, o   = sigmoid of their share of inputs[t] + weight h
        n         = tanh of its share of the same
        cell[t]   = f * c + i * n
        hidden[t] = o * tanh(cell[t])

    Differentiable once, by every tensor but `begins`.

    Args:
        inputs: `[T, N, 4H]`, the input's share of every gate, with all biases.
        hidden: `[N, H]` before the first step.
        cell: `[N, H]` before the first step.
        begins: `[T, N]` bool, where a step is the first of an episode.
        weight: `[4H, H]` of the hidden state.

    Raises:
        ValueError: `begins` or the states are of other steps or sequences than `inputs`.
    """
    num_sequences = inputs.shape[1]
    if begins.shape != inputs.shape[:2] or len(hidden) != num_sequences or len(cell) != num_sequences:
        shapes = f"begins {list(begins.shape)} and states {list(hidden.shape)} and {list(cell.shape)}"
        raise ValueError(f"{shapes} do not belong to inputs {list(inputs.shape)}")
    # In full precision also under autocast: what is rounded in a recurrence is rounded T times.
    inputs, hidden, cell = (value.to(weight.dtype) for value in (inputs, hidden, cell))
    states, cells, _ = _forward(inputs, hidden, cell, begins, weight)
    return states, cells


def _run_forward(
    inputs: Tensor, hidden: Tensor, cell: Tensor, begins: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states and cells `[T, N, H]`, and the gates `[T, N, 4H]`."""
    size = weight.shape[1]
    states, cells, gates = _make_outputs(inputs, size)
    transposed = weight.t()
    with torch.autocast(inputs.device.type, enabled=False):
        for t, restart in enumerate(restart_masks(begins)):
            if restart is not None:
                hidden, cell = hidden.masked_fill(restart, 0.0), cell.masked_fill(restart, 0.0)
            all_gates = torch.addmm(inputs[t], hidden, transposed, out=gates[t])
            all_gates[:, : 2 * size].sigmoid_()
            all_gates[:, 2 * size : 3 * size].tanh_()
            all_gates[:, 3 * size :].sigmoid_()
            i, f, n, o = all_gates.split(size, -1)
            cell = torch.mul(f, cell, out=cells[t]).addcmul_(i, n)
            hidden = torch.tanh(cell, out=states[t]).mul_(o)
    return states, cells, gates


def _run_backward(
    of_states: Tensor | None,
    of_cells: Tensor | None,
    states: Tensor,
    cells: Tensor,
    gates: Tensor,
    hidden: Tensor,
    cell: Tensor,
    begins: Tensor,
    weight: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients by inputs, hidden, cell and weight."""
    size = weight.shape[1]
    masks = begins[..., None]
    before, cells_before = (
        torch.cat((first[None], later[:-1])).masked_fill_(masks, 0.0)
        for first, later in ((hidden, states), (cell, cells))
    )
    i, f, n, o = gates.split(size, -1)
    squashed = cells.tanh()
    by_hidden = o * (1 - squashed * squashed)  # what a cell takes of the hidden state's gradient
    # What the arguments of the first three gates take of the cell's gradient, the last of the hidden state's.
    by_gates = torch.stack((n * i * (1 - i), cells_before * f * (1 - f), i * (1 - n * n)), 2)  # [T, N, 3, H]
    by_output = squashed * o * (1 - o)
    of_gates = torch.empty_like(gates).unflatten(-1, (4, size))
    of_hidden, of_cell = torch.zeros_like(hidden), torch.zeros_like(cell)
    with torch.autocast(gates.device.type, enabled=False):
        for t, restart in reversed(list(enumerate(restart_masks(begins)))):
            if of_states is not None:
                of_hidden = of_hidden + of_states[t]
            if of_cells is not None:
                of_cell = of_cell + of_cells[t]
            of_cell = torch.addcmul(of_cell, of_hidden, by_hidden[t])
            torch.mul(of_cell[:, None], by_gates[t], out=of_gates[t, :, :3])
            torch.mul(of_hidden, by_output[t], out=of_gates[t, :, 3])
            of_cell, of_hidden = of_cell * f[t], of_gates[t].flatten(1) @ weight
            if restart is not None:
                of_cell.masked_fill_(restart, 0.0)
                of_hidden.masked_fill_(restart, 0.0)
        of_inputs = of_gates.flatten(2)
        of_weight = of_inputs.flatten(0, 1).t() @ before.flatten(0, 1)
    return of_inputs, of_hidden, of_cell, of_weight


def _make_outputs(inputs: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    lead = inputs.shape[:2]
    return inputs.new_empty(*lead, size), inputs.new_empty(*lead, size), inputs.new_empty(*lead, 4 * size)


_forward = torch.library.custom_op("pi_incubator::lstm_scan", _run_forward, mutates_args=())
_backward = torch.library.custom_op("pi_incubator::lstm_scan_backward", _run_backward, mutates_args=())


@_forward.register_fake
def _(inputs, hidden, cell, begins, weight):  # type: ignore[no-untyped-def]
    return _make_outputs(inputs, weight.shape[1])


@_backward.register_fake
def _(of_states, of_cells, states, cells, gates, hidden, cell, begins, weight):  # type: ignore[no-untyped-def]
    return tuple(like.new_empty(like.shape) for like in (gates, hidden, cell, weight))


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output, *inputs[1:])


def _differentiate(
    ctx: Any, of_states: Tensor | None, of_cells: Tensor | None, _: Any
) -> tuple[Tensor | None, ...]:
    of_inputs, of_hidden, of_cell, of_weight = _backward(of_states, of_cells, *ctx.saved_tensors)
    return of_inputs, of_hidden, of_cell, None, of_weight


_forward.register_autograd(_differentiate, setup_context=_save)
