"""Collection of the next rollout while the last one is learned from: policies act that are one update old."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import torch
from tensordict import TensorDict
from torch import Tensor

from pi_incubator.algorithms._learner import Learner
from pi_incubator.networks._actor_critic import ActorCritic

SWITCH_INTERVAL_S = 1e-4
"""How long a thread may hold the interpreter while another waits; Python's 5 ms is a control step or more."""


class OverlappedLearner(Learner):
    """Another learner whose `update` returns at once and goes on in the background.

    Staleness: `actor` acts with weights that lack the update under way, so a rollout is one update older than
    what learns from it. PPO's ratios are taken to the policy that did act. The normalizer is the actor's, and
    the same for a rollout and the update on it.

    The same seed gives the same bits: both sides meet at each `update`, where weights and rollout are copied,
    and share nothing in between.

    Args:
        learner: what learns.
        policy: what it optimizes.
    """

    def __init__(self, learner: Learner, policy: ActorCritic) -> None:
        self.learner, self.policy = learner, policy
        self.actor = copy.deepcopy(policy).requires_grad_(False)
        device = next(policy.parameters()).device
        self._background: _Background = _Stream(device) if device.type == "cuda" else _Thread()
        self._data: TensorDict | None = None
        self._metrics: dict[str, Tensor] = {}

    def advantage(self, data: TensorDict) -> None:
        self.learner.advantage(data)

    def update(self, data: TensorDict) -> dict[str, Tensor]:
        """Start the update on a copy of `data`; returns the metrics of the one before it."""
        self.settle()
        first = self._data is None
        self._data = data.clone() if self._data is None else self._data.copy_(data)
        self._background.start(self.learner.update, self._data)
        if first:  # what is compiled by the way would hold up both sides
            self._metrics = self._background.wait()
        return self._metrics

    def settle(self) -> None:
        if not self._background.runs:
            return
        self._metrics = self._background.finish()
        self.actor.commit()
        for ours, theirs in zip(self.policy.buffers(), self.actor.buffers(), strict=True):
            ours.copy_(theirs)
        for theirs, weight in zip(self.actor.parameters(), self.policy.parameters(), strict=True):
            theirs.copy_(weight.detach())

    def state_dict(self) -> dict[str, Tensor]:
        return self.learner.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue; the policy must have been loaded already."""
        self.learner.load_state_dict(state)
        self.actor.load_state_dict(self.policy.state_dict())


class _Background(Protocol):
    """Where one call at a time runs beside the caller."""

    @property
    def runs(self) -> bool: ...

    def start(self, call: Callable[..., Any], *arguments: Any) -> None: ...

    def wait(self) -> Any:
        """Its result, once it has ended; it still counts as running."""

    def finish(self) -> Any:
        """Its result, once it has ended."""


class _Thread:
    """A thread: C++ physics and matrix products let go of the interpreter."""

    def __init__(self) -> None:
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        # A new thread would split torch's operations over all cores.
        threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(1, "update", torch.set_num_threads, (threads,))
        self._future: Future[Any] | None = None

    @property
    def runs(self) -> bool:
        return self._future is not None

    def start(self, call: Callable[..., Any], *arguments: Any) -> None:
        self._future = self._pool.submit(call, *arguments)

    def wait(self) -> Any:
        assert self._future is not None
        return self._future.result()

    def finish(self) -> Any:
        result, self._future = self.wait(), None
        return result


class _Stream:
    """A CUDA stream of its own: the call enqueues its kernels and returns."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._result: Any = None
        self.runs = False

    def start(self, call: Callable[..., Any], *arguments: Any) -> None:
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            self._result = call(*arguments)
        self.runs = True

    def wait(self) -> Any:
        torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
        return self._result

    def finish(self) -> Any:
        self.runs = False
        return self.wait()
