"""Checks of what a checkpoint says, for parts whose state torch does not check, or not as `StateError`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from pi_incubator.errors import StateError


def count_of(tensor: Tensor) -> int:
    """The number of rows that a saved buffer says were ever added.

    Raises:
        StateError: it is no single whole number.
    """
    if tensor.dim() or tensor.is_floating_point() or tensor.is_complex():
        raise StateError(f"has {tensor.flatten()[:4].tolist()} as number of rows")
    return int(tensor)


def load_module(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a module a saved state that has all of its tensors.

    Raises:
        StateError: it has others too, as of another network.
    """
    if more := sorted(state.keys() - module.state_dict().keys()):
        raise StateError(f"has {more[0]!r}, which is not known here")
    module.load_state_dict(state)


def set_generator(setter: Callable[[Tensor], object], state: Tensor) -> None:
    """Give a generator of torch a saved state, by the function that sets it.

    Raises:
        StateError: torch refuses the state.
    """
    try:
        setter(state)
    except torch.AcceleratorError:  # the device fails, whatever the state is
        raise
    except RuntimeError as error:
        raise StateError(f"has a state that torch's generator refuses ({error})") from error
