"""How a rollout is divided into minibatches: single samples, or whole sequences for networks with a state.

Every minibatch takes the same number of samples (or worlds) from each shard of worlds, see `data.sharded`.

Letters: T horizon, N worlds, K shards, B samples of a minibatch, n worlds of a minibatch, S state width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from tensordict import TensorDict
from torch import Tensor

from pi_incubator.data.sharded import ShardedRandom


class Minibatches(ABC):
    """A rollout that can be gone through many times."""

    @abstractmethod
    def shuffled(self, random: ShardedRandom) -> Iterator[TensorDict]:
        """Every sample once, in minibatches of the same shapes; a new order at each call."""


class Samples(Minibatches):
    """Minibatches of batch `[B]`: samples of any world and time.

    Args:
        data: a rollout's, `[T, N]`.
        keys: the entries that the loss reads.
        size: B.
    """

    def __init__(self, data: TensorDict, keys: Sequence[str], size: int) -> None:
        self._horizon, self._num_worlds = data.shape
        self._flat = data.select(*keys).flatten()  # [T * N]
        self._valid = data["valid"].flatten()  # [T * N]
        self._size = size

    def shuffled(self, random: ShardedRandom) -> Iterator[TensorDict]:
        num_shards = random.num_shards
        width = self._num_worlds // num_shards
        orders = []
        for shard, order in enumerate(random.permutations(self._horizon * width)):
            if num_shards > 1:  # index within the shard -> index within all worlds
                order = order // width * self._num_worlds + shard * width + order % width
            orders.append(compact_valid(self._valid, order))
        if num_shards == 1:
            yield from self._flat[orders[0]].split(self._size)
            return
        for pieces in zip(*(order.split(self._size // num_shards) for order in orders), strict=True):
            yield self._flat[torch.cat(pieces)]


class Sequences(Minibatches):
    """Minibatches of all T steps of some worlds, for the gradient through all of them.

    A minibatch has no batch size; it holds `samples` `[T, n]`; `state` `[n, S]` before the first step;
    `starts` `[T, n]`, where a step is the first of an episode; and `order` `[B]`, the flattened samples to
    learn from: steps of broken worlds belong to the sequence, but are not learned from.

    Args:
        data: a rollout's, `[T, N]`, with its `state`.
        keys: the entries that the loss reads.
        size: B, a multiple of T.
    """

    def __init__(self, data: TensorDict, keys: Sequence[str], size: int) -> None:
        self._samples = data.select(*keys)
        self._valid = data["valid"].squeeze(-1)  # [T, N]
        self._state = data["state"][0]  # [N, S], the same at every step
        done = data["next", "done"].squeeze(-1)
        # An episode that ended before the first step has zeroed the state already.
        self._starts = torch.cat((torch.zeros_like(done[:1]), done[:-1]))  # [T, N]
        self._num_worlds = size // len(done)  # n

    def shuffled(self, random: ShardedRandom) -> Iterator[TensorDict]:
        num_shards = random.num_shards
        width = len(self._state) // num_shards
        worlds = [order + shard * width for shard, order in enumerate(random.permutations(width))]
        for pieces in zip(*(order.split(self._num_worlds // num_shards) for order in worlds), strict=True):
            chosen = torch.cat(pieces)
            valid = self._valid[:, chosen].flatten()
            parts = {
                "samples": self._samples[:, chosen],
                "state": self._state[chosen],
                "starts": self._starts[:, chosen],
                "order": compact_valid(valid, torch.arange(len(valid), device=valid.device)),
            }
            yield TensorDict(parts, batch_size=[])


def compact_valid(valid: Tensor, order: Tensor) -> Tensor:
    """`order` `[B]` without the samples that are not `valid`; the first of those left fill up the end.

    Broken samples are few, so this costs nothing: every minibatch keeps its size, no loss needs a mask, and
    where no sample is broken `order` is unchanged. Where no sample is valid, one is repeated.
    """
    # Looking is free on the CPU; on a GPU it would stall the stream.
    if valid.device.type == "cpu" and valid.all():
        return order
    kept = valid[order]
    rank = kept.cumsum(0) - 1
    num_kept = rank[-1:] + 1
    place = torch.where(kept, rank, num_kept + (~kept).cumsum(0) - 1)
    compact = torch.empty_like(order).scatter_(0, place, order)
    return compact[torch.arange(len(order), device=order.device) % num_kept.clamp(min=1)]
