"""How a rollout is cut into minibatches: single samples, or whole sequences where the policy has a memory.

Letters: T horizon, N worlds, n worlds of a minibatch, B = T n samples of it, S state width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from tensordict import TensorDict
from torch import Tensor


class Minibatches(ABC):
    """A rollout, ready to be gone through many times."""

    @abstractmethod
    def shuffled(self, generator: torch.Generator) -> Iterator[TensorDict]:
        """Every sample once, in minibatches of one and the same form; a new order at each call."""


class Samples(Minibatches):
    """Minibatches of batch `[B]`, whatever world and time their samples are from.

    Args:
        data: a rollout's, `[T, N]`.
        keys: the entries that the loss reads.
        size: B.
    """

    def __init__(self, data: TensorDict, keys: Sequence[str], size: int) -> None:
        self._flat = data.select(*keys).flatten()  # [T * N]
        self._valid = data["valid"].flatten()  # [T * N]
        self._size = size

    def shuffled(self, generator: torch.Generator) -> Iterator[TensorDict]:
        order = torch.randperm(len(self._flat), generator=generator, device=generator.device)
        yield from self._flat[only(self._valid, order)].split(self._size)


class Sequences(Minibatches):
    """Minibatches of all T steps of some worlds, for the gradient through all of them.

    A minibatch has no batch size; it holds `samples` `[T, n]`; `state` `[n, S]` before the first step;
    `begins` `[T, n]`, where a step is the first of an episode; and `order` `[B]`, the flattened samples to
    learn from: broken ones were lived through, but teach nothing.

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
        # What ended before the first step has zeroed the state already.
        self._begins = torch.cat((torch.zeros_like(done[:1]), done[:-1]))  # [T, N]
        self._num_worlds = size // len(done)  # n

    def shuffled(self, generator: torch.Generator) -> Iterator[TensorDict]:
        worlds = torch.randperm(len(self._state), generator=generator, device=generator.device)
        for chosen in worlds.split(self._num_worlds):
            valid = self._valid[:, chosen].flatten()
            parts = {
                "samples": self._samples[:, chosen],
                "state": self._state[chosen],
                "begins": self._begins[:, chosen],
                "order": only(valid, torch.arange(len(valid), device=valid.device)),
            }
            yield TensorDict(parts, batch_size=[])


def only(valid: Tensor, order: Tensor) -> Tensor:
    """`order` `[B]` without the samples that are not `valid` `[B]`; the first of those left fill up the end.

    Broken samples are few, and so they cost nothing: no minibatch has another size, no loss needs a mask, and
    where there are none `order` is as it was. Where no sample is valid, one is repeated.
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
