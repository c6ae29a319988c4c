"""The selective scan as a plain torch loop: what the other implementations must equal, also by autograd."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def selective_scan(
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
) -> tuple[Tensor, Tensor]:
    """See `kernels.selective_scan.selective_scan`; all in one dtype, the results too."""
    if delta_bias is not None:
        delta = delta + delta_bias
    if delta_softplus:
        delta = F.softplus(delta)
    decay = (delta.unsqueeze(-1) * A).exp()  # [B, L, Dm, S]
    drive = (delta * x).unsqueeze(-1) * B.unsqueeze(2)
    state = torch.zeros_like(decay[:, :1]).sum(1) if initial_state is None else initial_state
    states = []
    for t, (kept, added) in enumerate(zip(decay.unbind(1), drive.unbind(1), strict=True)):
        if reset is not None:
            # `where`, because zero times the NaN of a diverged episode would be NaN.
            state = torch.where(reset[:, t, None, None], 0.0, state)
        state = kept * state + added
        states.append(state)
    # Of no steps an empty product, which autograd can still follow to every input.
    history = torch.stack(states, 1) if states else decay * drive
    y = (history * C.unsqueeze(2)).sum(-1)
    if D is not None:
        y = y + D * x
    if z is not None:
        y = y * F.silu(z)
    # An output must not be its input.
    return y, state if states else state.clone()
