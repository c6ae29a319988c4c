"""One call at a time beside the caller: in a thread on a CPU, in a separate stream on CUDA."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import torch

SWITCH_INTERVAL_S = 1e-4
"""How long a thread may hold the interpreter while another waits; Python's 5 ms is a control step or more."""


class Background(Protocol):
    """Where one call at a time runs beside the caller."""

    @property
    def runs(self) -> bool: ...

    def start(self, call: Callable[..., Any], *arguments: Any) -> None: ...

    def wait(self) -> Any:
        """Its result, once it has ended; it still counts as running."""

    def finish(self) -> Any:
        """Its result, once it has ended."""


def make_background(device: torch.device) -> Background:
    """A stream on CUDA, or a thread."""
    return Stream(device) if device.type == "cuda" else Thread()


class Thread:
    """A thread: C++ physics and matrix products let go of the interpreter."""

    def __init__(self) -> None:
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        # A new thread would split torch's operations over all cores.
        threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(1, "background", torch.set_num_threads, (threads,))
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
        future, self._future = self._future, None  # it has ended also where it failed
        assert future is not None
        return future.result()


class Stream:
    """A separate CUDA stream: the call enqueues its kernels and returns."""

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
