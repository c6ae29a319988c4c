"""Named tensors that are saved and continued as they are."""

from __future__ import annotations

from torch import Tensor


class NamedTensors:
    """A part of a checkpoint that is nothing but some tensors, which are loaded in place.

    Args:
        **tensors: by name.
    """

    def __init__(self, **tensors: Tensor) -> None:
        self._tensors = tensors

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self._tensors)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, tensor in self._tensors.items():
            tensor.copy_(state[name])
