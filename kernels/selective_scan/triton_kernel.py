"""The selective scan on a GPU: a program a sequence and a block of channels, chunk by chunk.

The steps of a chunk are scanned in parallel. Backward takes the chunks in reverse and makes their states anew
from the one that forward saved before each. Sums over what several programs hold, such as the gradients by B
of all channels, are added up afterwards: nothing is atomic, the same bits every time.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.selective_scan.op import CHUNK, make_gradients, make_outputs

# Channels times states of a program: a thread each, in whose registers the steps of a chunk lie. A block of
# channels writes its share of the gradients by B and C: the more channels in one, the fewer shares.
LANES = 256


@triton.jit
def _load(pointer, i, valid):
    return tl.load(pointer + i, mask=valid, other=0.0).to(tl.float32)


@triton.jit
def _softplus(v):
    # log(1 + e) is 2 atanh(e / (2 + e)), whose series needs no logarithm and keeps the digits of a small e.
    e = tl.exp(-tl.abs(v))
    w = e / (2.0 + e)
    q = w * w
    p = q * (1.0 / 15.0) + 1.0 / 13.0
    p = p * q + 1.0 / 11.0
    p = p * q + 1.0 / 9.0
    p = p * q + 1.0 / 7.0
    p = p * q + 1.0 / 5.0
    p = p * q + 1.0 / 3.0
    p = p * q + 1.0
    return tl.where(v > 0.0, v, 0.0) + 2.0 * w * p


@triton.jit
def _sigmoid(v):
    return 1.0 / (1.0 + tl.exp(-v))


@triton.jit
def _compose(decay, number, next_decay, next_number):
    """`h -> number + decay * h` before another such step; a decay of zero hides even a NaN."""
    carried = tl.where(next_decay == 0.0, 0.0, next_decay * number)
    return decay * next_decay, next_number + carried


@triton.jit
def _apply(decay, number, state):
    return number + tl.where(decay == 0.0, 0.0, decay * state)


@triton.jit
def _raw_steps(delta_ptr, bias, i, valid):
    return _load(delta_ptr, i, valid) + bias


@triton.jit
def _step_sizes(delta_ptr, bias, i, valid, SOFTPLUS: tl.constexpr):
    """`[CHUNK, CHANNELS]`; zero beyond the sequence, where the state stays what it is."""
    size = _raw_steps(delta_ptr, bias, i, valid)
    if SOFTPLUS:
        size = _softplus(size)
    return tl.where(valid, size, 0.0)


@triton.jit
def _decay(size, A, reset_ptr, t, inside):
    """`[CHUNK, CHANNELS, STATES]`, what a step leaves of the state before it."""
    decay = tl.exp(size[:, :, None] * A[None, :, :])
    if reset_ptr is not None:
        fresh = tl.load(reset_ptr + t, mask=inside, other=0).to(tl.int1)
        decay = tl.where(fresh[:, None, None], 0.0, decay)
    return decay


@triton.jit
def _per_channel(pointer, channel, exists):
    """`[1, CHANNELS]`, zeros where there is no such input."""
    if pointer is None:
        return tl.zeros_like(channel).to(tl.float32)[None, :]
    else:  # noqa: RET505, the other branch would be compiled too
        return _load(pointer, channel, exists)[None, :]


@triton.jit
def _grid_of(channel, number, num_channels, num_states):
    """Which channels and states exist, and the entries of `[Dm, S]` with which of them do."""
    exists, is_state = channel < num_channels, number < num_states
    lane = channel[:, None] * num_states + number[None, :]
    return exists, is_state, lane, exists[:, None] & is_state[None, :]


@triton.jit
def _rows_of(local, inside, column, exists, width):
    """The entries of a chunk of steps in a tensor of `width` a step, counted from its first; which exist."""
    return local[:, None] * width + column[None, :], inside[:, None] & exists[None, :]


@triton.jit
def forward_kernel(
    x_ptr,
    delta_ptr,
    A_ptr,
    B_ptr,
    C_ptr,
    D_ptr,
    z_ptr,
    bias_ptr,
    reset_ptr,
    initial_ptr,
    y_ptr,
    final_ptr,
    saved_ptr,
    num_steps,
    num_channels,
    num_states,
    SOFTPLUS: tl.constexpr,
    CHUNK: tl.constexpr,
    CHANNELS: tl.constexpr,
    STATES: tl.constexpr,
):
    batch = tl.cast(tl.program_id(0), tl.int64)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    number = tl.arange(0, STATES)
    exists, is_state, lane, lanes = _grid_of(channel, number, num_channels, num_states)
    A = _load(A_ptr, lane, lanes)
    D, bias = _per_channel(D_ptr, channel, exists), _per_channel(bias_ptr, channel, exists)
    state = tl.zeros([CHANNELS, STATES], tl.float32)
    if initial_ptr is not None:
        state = _load(initial_ptr + batch * num_channels * num_states, lane, lanes)
    local = tl.arange(0, CHUNK)
    num_chunks = tl.cdiv(num_steps, CHUNK)
    for chunk in range(num_chunks):
        # Counted from the first step of the chunk, which 32 bits do for.
        first = batch * num_steps + chunk * CHUNK
        inside = chunk * CHUNK + local < num_steps
        i, valid = _rows_of(local, inside, channel, exists, num_channels)
        j, readable = _rows_of(local, inside, number, is_state, num_states)
        if saved_ptr is not None:
            kept = saved_ptr + (batch * num_chunks + chunk) * num_channels * num_states
            tl.store(kept + lane, state, mask=lanes)
        x = _load(x_ptr + first * num_channels, i, valid)
        size = _step_sizes(delta_ptr + first * num_channels, bias, i, valid, SOFTPLUS)
        B = _load(B_ptr + first * num_states, j, readable)
        decay = _decay(size, A, reset_ptr, first + local, inside)
        reach, own = tl.associative_scan((decay, (size * x)[:, :, None] * B[:, None, :]), 0, _compose)
        states = _apply(reach, own, state[None, :, :])
        state = tl.sum(tl.where((local == CHUNK - 1)[:, None, None], states, 0.0), 0)
        C = _load(C_ptr + first * num_states, j, readable)
        y = tl.sum(states * C[:, None, :], 2) + D * x
        if z_ptr is not None:
            z = _load(z_ptr + first * num_channels, i, valid)
            y = y * z * _sigmoid(z)
        tl.store(y_ptr + first * num_channels + i, y, mask=valid)
    tl.store(final_ptr + batch * num_channels * num_states + lane, state, mask=lanes)


@triton.jit
def _states_before(
    x_ptr,
    delta_ptr,
    B_ptr,
    reset_ptr,
    flags,
    i,
    j,
    behind,
    exists,
    is_state,
    A,
    bias,
    kept,
    SOFTPLUS: tl.constexpr,
):
    """The states before each step of a chunk; the pointers are one step back, where the first has none."""
    valid = behind[:, None] & exists[None, :]
    size = _step_sizes(delta_ptr, bias, i, valid, SOFTPLUS)
    added = size * _load(x_ptr, i, valid)
    B = _load(B_ptr, j, behind[:, None] & is_state[None, :])
    decay = _decay(size, A, reset_ptr, flags, behind)
    reach, own = tl.associative_scan((decay, added[:, :, None] * B[:, None, :]), 0, _compose)
    return _apply(reach, own, kept[None, :, :])


@triton.jit
def _store_if(pointer, i, entries, valid):
    if pointer is not None:
        tl.store(pointer + i, entries, mask=valid)


@triton.jit
def _gate_backward(z_ptr, of_z_ptr, by_y, states, C, Dx, i, valid):
    """What the gate passes on of the gradient by y; that by the gate's input is written."""
    if z_ptr is not None:
        z = _load(z_ptr, i, valid)
        gate = _sigmoid(z)
        y = tl.sum(states * C[:, None, :], 2) + Dx
        tl.store(of_z_ptr + i, by_y * y * gate * (1.0 + z * (1.0 - gate)), mask=valid)
        by_y = by_y * z * gate
    return by_y


@triton.jit
def _states_gradient(given, next_size, A, reset_ptr, flags, ahead, carried):
    """By the state after each step, backwards: what a step hands on has passed the decay of the one after."""
    next_decay = _decay(next_size, A, reset_ptr, flags, ahead)
    reach, own = tl.associative_scan((next_decay, given), 0, _compose, reverse=True)
    return _apply(reach, own, carried[None, :, :])


@triton.jit
def backward_kernel(
    grad_y_ptr,
    grad_final_ptr,
    x_ptr,
    delta_ptr,
    A_ptr,
    B_ptr,
    C_ptr,
    D_ptr,
    z_ptr,
    bias_ptr,
    reset_ptr,
    saved_ptr,
    of_x_ptr,
    of_delta_ptr,
    of_A_ptr,
    of_B_ptr,
    of_C_ptr,
    of_D_ptr,
    of_z_ptr,
    of_bias_ptr,
    of_initial_ptr,
    num_steps,
    num_channels,
    num_states,
    SOFTPLUS: tl.constexpr,
    CHUNK: tl.constexpr,
    CHANNELS: tl.constexpr,
    STATES: tl.constexpr,
):
    batch, block = tl.cast(tl.program_id(0), tl.int64), tl.program_id(1)
    channel = block * CHANNELS + tl.arange(0, CHANNELS)
    number = tl.arange(0, STATES)
    exists, is_state, lane, lanes = _grid_of(channel, number, num_channels, num_states)
    A = _load(A_ptr, lane, lanes)
    D, bias = _per_channel(D_ptr, channel, exists), _per_channel(bias_ptr, channel, exists)
    carried = tl.zeros([CHANNELS, STATES], tl.float32)  # what the step behind hands to the state
    if grad_final_ptr is not None:
        carried = _load(grad_final_ptr + batch * num_channels * num_states, lane, lanes)
    of_A = tl.zeros([CHANNELS, STATES], tl.float32)
    of_D, of_bias = tl.zeros([CHANNELS], tl.float32), tl.zeros([CHANNELS], tl.float32)
    local = tl.arange(0, CHUNK)
    num_chunks = tl.cdiv(num_steps, CHUNK)
    # Each block of channels writes its share of the gradients by B and C.
    share = tl.cast(block, tl.int64) * tl.num_programs(0) * num_steps
    for back in range(num_chunks):
        chunk = num_chunks - 1 - back
        first = batch * num_steps + chunk * CHUNK
        step = chunk * CHUNK + local
        inside = step < num_steps
        i, valid = _rows_of(local, inside, channel, exists, num_channels)
        j, readable = _rows_of(local, inside, number, is_state, num_states)
        x_chunk, delta_chunk = x_ptr + first * num_channels, delta_ptr + first * num_channels
        B_chunk, flags = B_ptr + first * num_states, first + local

        kept = _load(saved_ptr + (batch * num_chunks + chunk) * num_channels * num_states, lane, lanes)
        before = _states_before(
            x_chunk - num_channels,
            delta_chunk - num_channels,
            B_chunk - num_states,
            reset_ptr,
            flags - 1,
            i,
            j,
            inside & (local > 0),
            exists,
            is_state,
            A,
            bias,
            kept,
            SOFTPLUS,
        )
        x = _load(x_chunk, i, valid)
        size = _step_sizes(delta_chunk, bias, i, valid, SOFTPLUS)
        B = _load(B_chunk, j, readable)
        C = _load(C_ptr + first * num_states, j, readable)
        decay = _decay(size, A, reset_ptr, flags, inside)
        remains = tl.where(decay == 0.0, 0.0, decay * before)
        states = remains + (size * x)[:, :, None] * B[:, None, :]

        by_y = _load(grad_y_ptr + first * num_channels, i, valid)
        by_y = _gate_backward(z_ptr, of_z_ptr, by_y, states, C, D * x, first * num_channels + i, valid)
        of_C = tl.sum(by_y[:, :, None] * states, 1)
        tl.store(of_C_ptr + (share + first) * num_states + j, of_C, mask=readable)

        ahead = (local < CHUNK - 1) & (step + 1 < num_steps)
        valid_ahead = ahead[:, None] & exists[None, :]
        next_size = _step_sizes(delta_chunk + num_channels, bias, i, valid_ahead, SOFTPLUS)
        given = by_y[:, :, None] * C[:, None, :]
        by_state = _states_gradient(given, next_size, A, reset_ptr, flags + 1, ahead, carried)
        handed = tl.where(decay == 0.0, 0.0, decay * by_state)
        carried = tl.sum(tl.where((local == 0)[:, None, None], handed, 0.0), 0)

        by_number = tl.sum(by_state * B[:, None, :], 2)
        by_remains = by_state * remains
        of_delta = tl.sum(by_remains * A[None, :, :], 2) + x * by_number
        of_A += tl.sum(by_remains * size[:, :, None], 0)
        of_B = tl.sum(by_state * (size * x)[:, :, None], 1)
        tl.store(of_B_ptr + (share + first) * num_states + j, of_B, mask=readable)
        tl.store(of_x_ptr + first * num_channels + i, size * by_number + D * by_y, mask=valid)
        if SOFTPLUS:
            of_delta = of_delta * _sigmoid(_raw_steps(delta_chunk, bias, i, valid))
        tl.store(of_delta_ptr + first * num_channels + i, of_delta, mask=valid)
        of_D += tl.sum(by_y * x, 0)
        of_bias += tl.sum(tl.where(valid, of_delta, 0.0), 0)

    sequence, of_states = batch * num_channels, batch * num_channels * num_states
    tl.store(of_A_ptr + of_states + lane, of_A, mask=lanes)
    _store_if(of_initial_ptr, of_states + lane, carried, lanes)
    _store_if(of_D_ptr, sequence + channel, of_D, exists)
    _store_if(of_bias_ptr, sequence + channel, of_bias, exists)


def forward(
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
) -> tuple[Tensor, Tensor, Tensor]:
    """See `kernels.selective_scan.op.run_forward`; on one CUDA device, no host synchronization."""
    y, final_state, saved = make_outputs(x, A, saves)
    tensors = (x, delta, A, B, C, D, z, delta_bias, reset, initial_state)
    outputs = (y, final_state, saved if saves else None)
    _launch(forward_kernel, (*tensors, *outputs), x, A, delta_softplus)
    return y, final_state, saved


def backward(
    grad_y: Tensor,
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
) -> list[Tensor]:
    """See `kernels.selective_scan.op.run_backward`; on one CUDA device, no host synchronization."""
    gradients = make_gradients(x, delta, A, B, C, D, z, delta_bias, initial_state)
    num_blocks = triton.cdiv(x.shape[2], tile(x.shape, A.shape)["CHANNELS"])
    # A part from each sequence of what all share, and from each block of channels of what these share.
    counts = {2: len(x), 3: num_blocks, 4: num_blocks, 5: len(x), 7: len(x)}
    parts = {
        i: gradients[i].new_empty(count, *gradients[i].shape, dtype=torch.float32)
        for i, count in counts.items()
    }
    of_D = None if D is None else parts[5]
    of_bias = None if delta_bias is None else parts[7]
    inputs = (grad_y, grad_final, x, delta, A, B, C, D, z, delta_bias, reset, saved)
    sums = (parts[2], parts[3], parts[4], of_D, gradients[6], of_bias)
    of_initial = None if initial_state is None else gradients[8]
    _launch(backward_kernel, (*inputs, *gradients[:2], *sums, of_initial), x, A, delta_softplus)
    for i, part in parts.items():
        gradients[i] = part.sum(0).to(gradients[i].dtype)
    return gradients


def tile(x_shape: torch.Size, A_shape: torch.Size) -> dict[str, int]:
    """What a program takes at once: steps, channels, states."""
    states = triton.next_power_of_2(A_shape[1])
    channels = max(1, min(LANES // states, triton.next_power_of_2(x_shape[2])))
    return {
        "CHUNK": min(CHUNK, triton.next_power_of_2(x_shape[1])),
        "CHANNELS": channels,
        "STATES": states,
        "num_warps": min(8, max(1, channels * states // 32)),
    }


def _launch(
    kernel: Any, tensors: tuple[Tensor | None, ...], x: Tensor, A: Tensor, delta_softplus: bool
) -> None:
    shape = tile(x.shape, A.shape)
    grid = (len(x), triton.cdiv(x.shape[2], shape["CHANNELS"]))
    with torch.cuda.device_of(x):
        kernel[grid](
            *tensors, *x.shape[1:], A.shape[1], SOFTPLUS=delta_softplus, enable_fp_fusion=True, **shape
        )
