"""Returns and lengths of running episodes, and means of what happened since somebody last asked."""

from __future__ import annotations

import torch
from torch import Tensor

from envs_gpu.guards import BrokenShare, GuardOptions
from envs_gpu.vec_env import VecEnv


class ZooEnv(VecEnv):
    """Worlds of a family whose episodes and broken worlds are in a book."""

    book: EpisodeBook

    def pop_metrics(self) -> dict[str, float]:
        return self.book.pop()

    def check(self) -> None:
        self.book.share.check()


class EpisodeBook:
    """Keeps account of N worlds on their device; only `pop` syncs with the host."""

    def __init__(self, num_envs: int, device: torch.device) -> None:
        self.length = torch.zeros(num_envs, dtype=torch.int64, device=device)
        self.episode_return = torch.zeros(num_envs, dtype=torch.float64, device=device)
        self.share = BrokenShare(num_envs, device, GuardOptions().max_broken_share)
        self._totals: Tensor | None = None

    def add(self, reward: Tensor, done: Tensor, metrics: dict[str, Tensor], causes: Tensor) -> None:
        """Account for one step of every world; all `[N]`, `causes` the bits of `envs_gpu.guards.Cause`."""
        self.share.add(causes)
        self.length += 1
        self.episode_return += reward
        counted = (torch.ones_like(reward), done, self.episode_return * done, self.length * done)
        totals = torch.stack([value.double().sum() for value in (*counted, *metrics.values())])
        self._totals = totals if self._totals is None else self._totals + totals
        self._names = tuple(metrics)
        self.length.masked_fill_(done, 0)
        self.episode_return.masked_fill_(done, 0.0)

    def clear(self) -> None:
        """Every world begins anew."""
        self.length.zero_()
        self.episode_return.zero_()
        self._totals = None

    def pop(self) -> dict[str, float]:
        """As `VecEnv.pop_metrics`."""
        if self._totals is None:
            return {}
        num_steps, num_episodes, episode_return, episode_length, *sums = self._totals.tolist()
        self._totals = None
        metrics = {name: total / num_steps for name, total in zip(self._names, sums, strict=True)}
        if num_episodes:
            metrics["episode/return"] = episode_return / num_episodes
            metrics["episode/length"] = episode_length / num_episodes
        return metrics | {"episode/count": num_episodes}

    def state_dict(self) -> dict[str, Tensor]:
        return {"book.length": self.length.clone(), "book.return": self.episode_return.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.length.copy_(state["book.length"])
        self.episode_return.copy_(state["book.return"])
