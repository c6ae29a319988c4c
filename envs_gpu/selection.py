"""Some of the worlds: indices `[n]` on the CPU, on a GPU a mask `[N]` bool over all of them.

Finding out who is concerned costs nothing on the CPU and saves work; on a GPU it would stall the stream, and
work for all worlds costs no more than for a few.
"""

from __future__ import annotations

from torch import Tensor, where
from torch import bool as mask_dtype


def concerned(mask: Tensor) -> Tensor:
    """The worlds where `mask` `[N]` is true, as a selection."""
    return mask.nonzero().squeeze(-1) if mask.device.type == "cpu" else mask


def nobody(worlds: Tensor) -> bool:
    """Whether the selection is known to be empty."""
    return worlds.dtype != mask_dtype and not len(worlds)


def take(values: Tensor, worlds: Tensor) -> Tensor:
    """The selection's rows of `values` `[N, ...]`, or all where the selection is a mask."""
    return values if worlds.dtype == mask_dtype else values[worlds]


def write(target: Tensor, worlds: Tensor, values: Tensor) -> None:
    """Write `values` into the selection's rows of `target` `[N, ...]`; shaped as `take` gives them."""
    values = values.to(target.dtype)
    if worlds.dtype == mask_dtype:
        target.copy_(where(worlds.view(-1, *[1] * (target.dim() - 1)), values, target))
    else:
        target[worlds] = values
