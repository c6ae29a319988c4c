"""Rewards scaled so that discounted returns fit into fixed bounds.

From SimbaV2 (Lee et al. 2025, arXiv 2502.15280), which FlashSAC takes over.

Letters: N worlds of this rank.
"""

from __future__ import annotations

import torch
from torch import Tensor

from envs_gpu.vec_env import StepResult
from kernels.normalize import gather_moments, make_moments, mean_and_std, merge_moments
from pi_incubator.distributed import Distributed


class RewardScale:
    """What rewards are divided by: the standard deviation of returns, or more where the largest needs it.

    A return here is the discounted sum of the rewards of an episode so far, as of each step.

    Args:
        num_worlds: N.
        gamma: discount, per step.
        largest_value: bound on scaled returns.
        device: of the training.
    """

    def __init__(self, num_worlds: int, gamma: float, largest_value: float, device: torch.device) -> None:
        self._gamma, self._largest_value = gamma, largest_value
        self.returns = torch.zeros(num_worlds, device=device)  # [N]
        self.largest = torch.zeros((), device=device)
        self.moments = make_moments(1, device)
        self.gathered = make_moments(1, device)
        self.scale = torch.ones((), device=device)

    def observe(self, result: StepResult) -> None:
        """Count the rewards of a step; a world that broke got none."""
        self.returns.mul_(self._gamma).add_(result.reward)
        self.largest.copy_(torch.maximum(self.largest, self.returns.abs().max()))
        gather_moments(self.returns.unsqueeze(-1), self.gathered)
        self.returns.masked_fill_(result.terminated | result.truncated, 0.0)

    def commit(self, distributed: Distributed) -> None:
        """Let what was counted take effect, on all ranks alike."""
        merge_moments(self.moments, distributed.merge_moments(self.gathered))
        self.gathered.zero_()
        self.largest.copy_(distributed.maximum(self.largest))
        _, std = mean_and_std(self.moments)
        scale = torch.maximum(std.squeeze().to(self.largest), self.largest / self._largest_value)
        self.scale.copy_(scale)

    def state_dict(self) -> dict[str, Tensor]:
        """What all ranks share; the running `returns` belong to the worlds of each."""
        return {"largest": self.largest, "moments": self.moments, "scale": self.scale}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])
