"""Optimizer steps that are left out because a loss or a gradient was not finite."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pi_incubator.errors import DivergedError
from pi_incubator.training.adam import total_norm


def is_sound(gradients: Sequence[Tensor], report: Tensor) -> Tensor:
    """0-dim bool: everything that an optimizer step would use, and all that it reports, is finite.

    The norm is what is clipped, so one that overflows counts as not finite.

    Args:
        gradients: of the ranks together.
        report: `[K]` losses and metrics of the minibatch.
    """
    return total_norm(gradients).isfinite() & report.isfinite().all()


class SkippedUpdates:
    """Counts optimizer steps that were skipped; tensors on the device, so that counting needs no host sync.

    Args:
        device: of the training.
    """

    def __init__(self, device: torch.device) -> None:
        self.total = torch.zeros((), dtype=torch.int64, device=device)
        self.in_a_row = torch.zeros((), dtype=torch.int64, device=device)
        self._reported = 0

    def note(self, sound: Tensor) -> None:
        """Count one optimizer step, which was taken if `sound` (0-dim bool) is true."""
        self.total.add_(~sound)
        self.in_a_row.add_(1).mul_(~sound)

    def pop(self) -> int:
        """How many were skipped since the last call; one host sync."""
        total = int(self.total)
        new, self._reported = total - self._reported, total
        return new

    def check(self, limit: int) -> None:
        """Stop a training that no longer learns; one host sync.

        Raises:
            DivergedError: the last `limit` optimizer steps were all skipped.
        """
        in_a_row = int(self.in_a_row)
        if in_a_row >= limit:
            raise DivergedError(
                f"the last {in_a_row} updates were skipped, because their loss or gradient was not finite "
                f"(guards.max_skipped_updates = {limit}); lower the learning rate, or algorithm.reward_scale "
                "where there is one, "
                "and start anew with another experiment.name"
            )

    def state_dict(self) -> dict[str, Tensor]:
        return {"total": self.total, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.total.copy_(state["total"])
        self.in_a_row.copy_(state["in_a_row"])
        self._reported = int(self.total)
