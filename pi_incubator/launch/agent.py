"""What runs on a node of a cluster beside one rank: it starts the rank, and reports its state."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pi_incubator.launch.plan import versions

MAX_LINES = 10_000
"""Lines of a rank's output that wait to be fetched; older ones are dropped."""
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded before any fork


@dataclass(frozen=True)
class Node:
    """Where an agent is."""

    name: str
    address: str
    free_port: int
    has_directory: bool
    """Whether the folder that the training was started in is there too."""
    has_python: bool
    """Whether the Python that runs the ranks is there."""
    gpus: tuple[str, ...]
    """The GPUs that are for this rank."""
    versions: dict[str, str]


@dataclass(frozen=True)
class Report:
    """How a rank is."""

    exit_code: int | None
    """None while it runs; negative where a signal ended it."""
    lines: list[str]
    """What it printed since the last report."""


class Agent:
    """Starts one rank as a process of its own, so that it is the same program as without a cluster.

    The process ends when the agent does, however that ends.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._lines: deque[str] = deque(maxlen=MAX_LINES)
        self._reader: threading.Thread | None = None

    def look(self, directory: str, python: str, address: str, gpus: Sequence[str] = ()) -> Node:
        """What this node is like.

        Args:
            directory: in which the ranks run.
            python: the path of what runs them.
            address: of the node.
            gpus: that are for this rank.
        """
        with socket.socket() as listener:
            listener.bind(("", 0))
            port = listener.getsockname()[1]
        has = os.path.isdir(directory), os.access(python, os.X_OK)
        return Node(socket.gethostname(), address, port, *has, tuple(gpus), versions())

    def start(self, command: Sequence[str], environment: Mapping[str, str], directory: str) -> int:
        """Start the rank with `environment` beside the node's own; returns its process id."""
        self._process = subprocess.Popen(
            list(command),
            env={**os.environ, **environment},
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            preexec_fn=end_with_parent,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self._process.pid

    def report(self) -> Report:
        """How the rank is now."""
        assert self._process is not None
        code = self._process.poll()
        if code is not None and self._reader:  # everything that it printed belongs to its last report
            self._reader.join(timeout=1.0)
        lines = [self._lines.popleft() for _ in range(len(self._lines))]
        return Report(code, lines)

    def send(self, signum: int) -> None:
        """Send a signal to the rank."""
        if self._process and self._process.poll() is None:
            self._process.send_signal(signum)

    def stop(self) -> None:
        """End the rank at once."""
        if self._process:
            self._process.kill()
            self._process.wait()

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.append(line.rstrip("\n"))


def end_with_parent() -> None:
    """Ask Linux to kill this process when its parent ends; for `preexec_fn`."""
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
