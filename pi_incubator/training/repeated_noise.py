"""Exploration noise that stays the same for a random number of steps (FlashSAC 2026; temporally extended
epsilon-greedy, Dabney et al. 2021, arXiv 2006.01782).

Letters: N worlds, A actions.
"""

from __future__ import annotations

import torch
from torch import Tensor

EXPONENT = 2.0
"""s of a zeta distribution: the probability that a noise lasts n steps is in proportion to 1 / n^s."""


class RepeatedNoise:
    """One noise for each world, each with its own number of steps left.

    Args:
        num_worlds: N.
        num_actions: A.
        longest: most steps with one noise; 1 makes it new at every step.
        device: of the training.
    """

    def __init__(self, num_worlds: int, num_actions: int, longest: int, device: torch.device) -> None:
        steps = torch.arange(1, longest + 1, dtype=torch.float64, device=device)
        weights = steps**-EXPONENT
        self._up_to = (weights.cumsum(0) / weights.sum()).float()[:-1]  # [longest - 1]
        self.noise = torch.zeros(num_worlds, num_actions, device=device)
        self.left = torch.zeros(num_worlds, dtype=torch.int64, device=device)

    def next(self, fresh: Tensor, length: Tensor) -> Tensor:
        """The noise `[N, A]` of this step.

        Args:
            fresh: `[N, A]`, the noise of the worlds whose last one has ended.
            length: `[N]` standard normal; decides how many steps it lasts.
        """
        ends = self.left == 0
        lasts = 1 + torch.bucketize(torch.special.ndtr(length), self._up_to, right=True)
        self.noise.copy_(torch.where(ends.unsqueeze(-1), fresh, self.noise))
        self.left.copy_(torch.where(ends, lasts, self.left) - 1)
        return self.noise

    def state_dict(self) -> dict[str, Tensor]:
        return {"noise": self.noise, "left": self.left}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.noise.copy_(state["noise"])
        self.left.copy_(state["left"])
