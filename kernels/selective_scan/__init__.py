"""Mamba's selective scan: over a sequence for training, one step for acting.

B sequences, L steps, Dm channels, S states a channel.

Both directions read each input once. Forward keeps no state but one every 8 steps; backward makes the others
anew from those, because reading all of them would be S times the traffic of everything else.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels import dispatch
from kernels._checks import FLOATING
from kernels.registry import kernel
from kernels.selective_scan import op, reference

_HALVES = (torch.bfloat16, torch.float16)


def make_inputs(
    num_steps: int,
    num_worlds: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    num_channels: int = 32,
    num_states: int = 16,
) -> dict[str, Any]:
    """Random arguments for `selective_scan`, A and delta as Mamba draws them; 2% of the steps reset."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    sequence = (num_worlds, num_steps)
    inputs = {
        "x": randn(*sequence, num_channels),
        "delta": randn(*sequence, num_channels),
        "A": -torch.arange(1.0, num_states + 1.0).repeat(num_channels, 1),
        "B": randn(*sequence, num_states),
        "C": randn(*sequence, num_states),
        "D": randn(num_channels),
        "z": randn(*sequence, num_channels),
        "delta_bias": randn(num_channels) - 4.0,
        "initial_state": randn(num_worlds, num_channels, num_states),
    }
    reset = torch.rand(sequence, generator=generator) < 0.02
    moved = {name: tensor.to(device, dtype) for name, tensor in inputs.items()}
    return {**moved, "reset": reset.to(device), "delta_softplus": True}


@kernel("selective_scan", inputs=make_inputs)
def selective_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *,
    delta_softplus: bool = False,
    reset: Tensor | None = None,
    initial_state: Tensor | None = None,
    implementation: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The recurrence of S6 (Gu & Dao 2023, eq. 2 and section 3.2), discretized as their released code does.

        delta[t] = softplus(delta[t] + delta_bias)
        before   = 0 where reset[t], else state[t - 1]
        state[t] = exp(delta[t] * A) * before + delta[t] * x[t] * B[t]
        y[t]     = (sum over the states of C[t] * state[t] + D * x[t]) * silu(z[t])

    What is None is left out, and so is the softplus unless `delta_softplus`. Differentiable once, by every
    tensor but `reset`. Floating-point inputs are float32, bfloat16 or float16, in any mixture, or all of them
    float64, for the reference; computed in float32, gradients have the dtypes of what they belong to. Those
    that are not contiguous are copied. A NaN stays in its sequence and, except by A, D and `delta_bias`, in
    its episode.

    Args:
        x: `[B, L, Dm]`, the input of each channel.
        delta: `[B, L, Dm]`, the step size.
        A: `[Dm, S]`, negative where the state is to decay.
        B: `[B, L, S]`, how the input enters the states.
        C: `[B, L, S]`, how the states are read.
        D: `[Dm]`, weight of the input in the output.
        z: `[B, L, Dm]`, the gate.
        delta_bias: `[Dm]`, added to delta before the softplus.
        delta_softplus: whether the step size passes through a softplus.
        reset: `[B, L]` bool; an episode begins with this step, whose state is zero before it.
        initial_state: `[B, Dm, S]`, before the first step; None is zero.
        implementation: as for `kernels.gae.gae`.

    Returns:
        `(y, final_state)`: `[B, L, Dm]` in the dtype of x, and `[B, Dm, S]` float32, or float64 of float64.

    Raises:
        ValueError: an argument does not fit, or the implementation cannot take these tensors.
        ImportError: the package behind the implementation is not installed.
    """
    tensors = {"x": x, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias}
    states = {"reset": reset, "initial_state": initial_state}
    _check("selective_scan", "[B, L, Dm]", tensors | states)
    return _run(*tensors.values(), reset, initial_state, delta_softplus, implementation)


def selective_step(
    state: Tensor,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *,
    delta_softplus: bool = False,
    reset: Tensor | None = None,
    implementation: str = "auto",
) -> tuple[Tensor, Tensor]:
    """One step of `selective_scan`, by the same kernel, as a policy takes when it acts.

    Args:
        state: `[B, Dm, S]`, before the step; it is not written to.
        x: `[B, Dm]`, and so are `delta` and `z`; `B` and `C` are `[B, S]`; the rest as for the scan.
        reset: `[B]` bool; the state is taken as zero.

    Returns:
        `(y, state)`: `[B, Dm]` in the dtype of x, and `[B, Dm, S]` after the step.

    Raises:
        ValueError: an argument does not fit, or the implementation cannot take these tensors.
        ImportError: the package behind the implementation is not installed.
    """
    tensors = {"x": x, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias}
    _check("selective_step", "[B, Dm]", tensors | {"reset": reset, "state": state})
    for name in ("x", "delta", "B", "C", "z"):
        tensor = tensors[name]
        tensors[name] = None if tensor is None else tensor.unsqueeze(1)
    reset = None if reset is None else reset.unsqueeze(1)
    y, state = _run(*tensors.values(), reset, state, delta_softplus, implementation)
    return y.squeeze(1), state


def _run(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Those of `op.run_forward` but for `saves`, and by the way that suits them."""
    *given, implementation = arguments
    x = given[0]
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    if not torch.compiler.is_compiling():
        dispatch.load("selective_scan", implementation, x.device.type, dtype)
    chosen = dispatch._choose(x.device.type, dtype)[0] if implementation == "auto" else implementation
    if x.numel() == 0:
        chosen = "reference"
    if chosen != "triton":  # which converts what it loads
        given = [i.float() if torch.is_tensor(i) and i.dtype in _HALVES else i for i in given]
    if chosen == "reference":
        y, state = reference.selective_scan(*given)
        return y.to(x.dtype), state
    given = [i.contiguous() if torch.is_tensor(i) else i for i in given]
    needs_gradient = torch.is_grad_enabled() and any(torch.is_tensor(i) and i.requires_grad for i in given)
    run = op.run_forward
    if torch.compiler.is_compiling():
        run = op.forward
    elif needs_gradient:
        run = op.Function.apply
    options: list[Any] = [needs_gradient, implementation]
    y, state, _ = run(*given, *options)
    return y.to(x.dtype), state


def _check(kernel: str, layout: str, tensors: dict[str, Tensor | None]) -> None:
    """`layout` is that of x, "[B, L, Dm]" or "[B, Dm]".

    Raises:
        ValueError: a tensor does not fit x in its shape, dtype or device.
    """
    x, A = tensors["x"], tensors["A"]
    assert x is not None
    assert A is not None
    if x.ndim != layout.count(",") + 1 or x.dtype not in FLOATING:
        raise ValueError(
            f"{kernel}: x must be {layout} of float32, bfloat16, float16 or float64, got {_show(x)}"
        )
    *sequence, num_channels = x.shape
    if A.ndim != 2 or A.shape[1] == 0:
        raise ValueError(
            f"{kernel}: A must be [Dm, S] with Dm = {num_channels} and S of at least 1, got {_show(A)}"
        )
    num_states = A.shape[1]
    shapes = {
        **dict.fromkeys(("x", "delta", "z"), (*sequence, num_channels)),
        **dict.fromkeys(("B", "C"), (*sequence, num_states)),
        **dict.fromkeys(("D", "delta_bias"), (num_channels,)),
        **dict.fromkeys(("state", "initial_state"), (sequence[0], num_channels, num_states)),
        "A": (num_channels, num_states),
        "reset": tuple(sequence),
    }
    floats = (torch.float64,) if x.dtype == torch.float64 else (torch.float32, *_HALVES)
    for name, tensor in tensors.items():
        expected = (torch.bool,) if name == "reset" else floats
        if tensor is None:
            continue
        if tensor.shape != shapes[name] or tensor.dtype not in expected or tensor.device != x.device:
            known = ", ".join(str(dtype) for dtype in expected)
            raise ValueError(
                f"{kernel}: {name} must be {list(shapes[name])} {known} on {x.device} beside x of "
                f"{list(x.shape)} {x.dtype}, got {_show(tensor)}"
            )


def _show(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {tensor.dtype} on {tensor.device}"
