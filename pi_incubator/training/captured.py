"""An optimizer step as one CUDA graph: a launch for a minibatch instead of one for every kernel."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import TensorDict
from torch import Tensor

Step = Callable[[TensorDict], Tensor]
"""Minibatch -> report."""
Recorded = Callable[[], Tensor]

# Real steps before the capture: they compile and allocate workspaces, which a graph may not.
NUM_WARM_UP = 3


def capture_on_cuda(function: Recorded) -> Recorded:
    """`function` recorded, not run; the result replays it and returns the same tensor every time."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = function()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


class CapturedStep:
    """A step that is run a few times and then captured and replayed.

    The step changes things in place: after a checkpoint is loaded, the same graph goes on from there. A
    report must be read before the next call.

    Args:
        step: minibatch -> report; no host synchronization, and every minibatch has the same shapes.
        capture: what records; another one in tests.
    """

    def __init__(self, step: Step, capture: Callable[[Recorded], Recorded] = capture_on_cuda) -> None:
        self._step, self._capture = step, capture
        self._num_calls = 0
        self._minibatch: TensorDict | None = None
        self._replay: Recorded | None = None

    def __call__(self, minibatch: TensorDict) -> Tensor:
        self._num_calls += 1
        if self._num_calls <= NUM_WARM_UP:
            return self._step(minibatch)
        if self._minibatch is None:
            self._minibatch = minibatch.clone()
        self._minibatch.copy_(minibatch)
        if self._replay is None:
            recorded = self._minibatch
            self._replay = self._capture(lambda: self._step(recorded))
        return self._replay()
