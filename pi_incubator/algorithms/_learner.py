"""What a learner offers the on-policy loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from tensordict import TensorDict


class Learner(ABC):
    """A loss and its optimizer step."""

    @abstractmethod
    def advantage(self, data: TensorDict) -> None:
        """Write `advantage` and `value_target` into a rollout's data of batch `[T, N]`."""

    @abstractmethod
    def update(self, data: TensorDict) -> dict[str, Tensor]:
        """Optimize on the rollout; returns 0-dim metrics that stay on the device."""

    def settle(self) -> None:
        """Wait for an update that goes on in the background; the policy is then whole, and can be saved."""

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """Everything that a bit-exact continuation needs beside the policy's own weights."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from what `state_dict` gave."""
