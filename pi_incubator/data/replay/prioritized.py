"""Prioritized replay (Schaul et al. 2016, arXiv 1511.05952): steps are sampled in proportion to a priority.

A sample has two more names than the contract's: `index` `[B]` int64, which `update_priority` takes, and
`weight` `[B]`, by which losses correct that the steps are not equally likely (section 3.4), at most 1.

Letters: L steps of each world, N worlds, K shards, n = N / K worlds of a shard, B samples of a minibatch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from kernels import sum_tree
from pi_incubator.data.replay.ring import Ring

EPSILON = 1e-6
"""Added to what was learned from a step, so that every step can be sampled again."""


class Prioritized(Ring):
    """A ring with a sum tree over the steps of each shard.

    A new step gets the largest priority of its shard so far: it is sampled soon. A broken one has none.

    Args:
        *arguments, **options: as of `Ring`.
        exponent: alpha, of the priorities; 0 samples uniformly.
        correction: beta, of the weights; 1 corrects in full.
    """

    def __init__(
        self, *arguments: Any, exponent: float = 0.6, correction: float = 0.4, **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self._exponent, self._correction = exponent, correction
        device = self._flat["reward"].device
        self._trees = [
            sum_tree.make(self._length * self._width, device) for _ in range(self._random.num_shards)
        ]
        self._largest = torch.ones(len(self._trees), device=device)  # [K]
        self._worlds = torch.arange(self._width, device=device)

    def add(self, steps: Mapping[str, Tensor]) -> None:
        place = self._count % self._length
        super().add(steps)
        valid = steps["valid"].split(self._width)
        for tree, largest, of_shard in zip(self._trees, self._largest, valid, strict=True):
            sum_tree.update(tree, place * self._width + self._worlds, torch.where(of_shard, largest, 0.0))

    def sample(self, size: int) -> TensorDict:
        uniform = self._random.stratified(size // self._random.num_shards)
        sampled = [sum_tree.sample(tree, numbers) for tree, numbers in zip(self._trees, uniform, strict=True)]
        index = self._places([index for index, _ in sampled])
        # (L n probability) ** -correction, divided by the largest of the shard.
        weights = [(chance / chance.amin()) ** -self._correction for _, chance in sampled]
        return self.steps_at(index, others={"index": index, "weight": torch.cat(weights)})

    def update_priority(self, index: Tensor, priority: Tensor) -> None:
        """Tell how much was learned from sampled steps, in the order in which `sample` gave them."""
        new = (priority.detach().abs() + EPSILON) ** self._exponent
        shards = (self._trees, self._largest, self._of_shards(index), new.chunk(len(self._trees)))
        for tree, largest, of_shard, found in zip(*shards, strict=True):
            # What is not finite has taught nothing, and a broken step keeps its priority of zero.
            old = sum_tree.priorities(tree)[of_shard]
            kept = torch.where(found.isfinite() & (old > 0), found, old)
            largest.copy_(torch.maximum(largest, kept.amax()))
            sum_tree.update(tree, of_shard, kept)

    def state_dict(self) -> dict[str, Tensor]:
        """As of `Ring`, with the leaves of the trees."""
        leaves = {f"priority.{shard}": sum_tree.priorities(tree) for shard, tree in enumerate(self._trees)}
        return super().state_dict() | leaves | {"largest_priority": self._largest}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        super().load_state_dict(state)
        self._largest.copy_(state["largest_priority"])
        for shard, tree in enumerate(self._trees):
            leaves = state[f"priority.{shard}"].to(tree.device)
            sum_tree.update(tree, torch.arange(len(leaves), device=tree.device), leaves)
