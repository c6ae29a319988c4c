"""Updates in the background: the next rollout is collected while the last one is learned from."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import torch
from tensordict import TensorDict
from torch import Tensor

from pi_incubator.policies.actor_critic import ActorCritic
from pi_incubator.saved_state import load_module

SWITCH_INTERVAL_S = 1e-4
"""How long a thread may hold the interpreter while another waits; Python's 5 ms is a control step or more."""
HAS_LEARNED = "has_learned"
"""In a checkpoint: whether there was an update before it."""


class OverlappedUpdates:
    """Updates that return at once and go on in the background.

    `actor` acts with weights that lack the update under way, so a rollout is one update older than the policy
    that learns from it. PPO takes its ratios to the policy that did act. The normalizer is the actor's, and
    the same for a rollout and the update on it.

    The same seed gives the same bits: both sides meet at each `update` and nowhere else. There weights and
    rollout are copied, and in between the two share nothing. `settle` waits and hands nothing over, so saving
    more often changes nothing. The actor is part of a checkpoint, because it lags behind `model`.

    Args:
        learn: rollout -> metrics; optimizes `model`.
        model: what is optimized.
    """

    def __init__(self, learn: Callable[[TensorDict], dict[str, Tensor]], model: ActorCritic) -> None:
        self._learn, self._model = learn, model
        self.actor = copy.deepcopy(model).requires_grad_(False)
        device = next(model.parameters()).device
        self._background: _Background = _Stream(device) if device.type == "cuda" else _Thread()
        self._data: TensorDict | None = None
        self._metrics: dict[str, Tensor] = {}
        self._has_learned = torch.zeros((), dtype=torch.bool)

    @property
    def is_learning(self) -> bool:
        """Whether an update is under way, so that the weights of `model` must not be read."""
        return self._background.runs

    def update(self, data: TensorDict) -> dict[str, Tensor]:
        """Start the update on a copy of `data`; returns the metrics of the one before it."""
        self.settle()
        if self._has_learned:
            self._hand_over()
        first = self._data is None
        self._data = data.clone() if self._data is None else self._data.copy_(data)
        self._background.start(self._learn, self._data)
        self._has_learned.fill_(True)
        if first:  # compilation in the background would hold up both sides
            self._metrics = self._background.wait()
        return self._metrics

    def settle(self) -> None:
        """Wait for the update under way, if any."""
        if self._background.runs:
            self._metrics = self._background.finish()

    def state_dict(self) -> dict[str, Tensor]:
        """The actor, and whether an update has been made that it lacks."""
        return self.actor.state_dict() | {HAS_LEARNED: self._has_learned}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from what `state_dict` gave."""
        self._has_learned.copy_(state[HAS_LEARNED])
        load_module(self.actor, {name: value for name, value in state.items() if name != HAS_LEARNED})

    def _hand_over(self) -> None:
        """Let the actor have the newest weights, and the model the actor's newest moments of observations."""
        self.actor.policy.normalizer.commit()
        for ours, theirs in zip(self._model.buffers(), self.actor.buffers(), strict=True):
            ours.copy_(theirs)
        for theirs, weight in zip(self.actor.parameters(), self._model.parameters(), strict=True):
            theirs.copy_(weight.detach())


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
