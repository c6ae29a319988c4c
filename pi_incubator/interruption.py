"""SIGTERM (SLURM, docker stop, systemd) and SIGINT (Ctrl-C): what is done is saved, then the process ends.

Between two signals the process is in one of two states:

- *at once*, the usual one: a signal raises `Interrupted` where the process is. Preparing, evaluating, filming
  and exporting are done again when the run continues, so nothing is lost.
- *deferred*, while the loop trains: the iteration is finished, the run is saved, and then `Interrupted` is
  raised. All ranks stop after the same iteration. An iteration that takes longer than `GRACE_S` is given up,
  and the run continues from its newest checkpoint. The save at the end is not cut short.

A second signal ends the process at once. Signals that come within `SAME_REQUEST_S` of the first are the same
request: a launcher passes on what the process has already received from its group.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pi_incubator.distributed import Distributed

SIGNALS = (signal.SIGTERM, signal.SIGINT)
GRACE_S = 8.0
"""How long an iteration may go on after a signal. `docker stop` kills after 10 s, SLURM after 30 s."""
CLEAN_UP_S = 1.5
"""How long the process then has to close its tracker and end."""
SAME_REQUEST_S = 1.0


class Interrupted(KeyboardInterrupt):
    """A signal ends the process.

    Args:
        signum: the signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum
        self.state = ""
        """What is left of the run, for the user."""
        self.settings: tuple[str, ...] = ()
        """Settings that the command needs in addition, to continue."""

    @property
    def exit_code(self) -> int:
        """As shells count: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.signum

    def __str__(self) -> str:
        name = signal.Signals(self.signum).name
        return f"stopped by {name}" + (f"; {self.state}" if self.state else "")


class _Handler:
    """What this process does about signals."""

    def __init__(self) -> None:
        self.signum = 0
        """The first signal that came; 0 before."""
        self.deferred = False
        self._first_s = 0.0
        self._overdue = False
        self._in_time = threading.Event()

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        now_s = time.monotonic()
        if not self.signum:
            self.signum, self._first_s = signum, now_s
            threading.Thread(target=self._watch, name="interruption", daemon=True).start()
            if self.deferred:
                _say(f"{signal.Signals(signum).name}: finishing this iteration; a second signal ends at once")
                return
            raise Interrupted(signum)
        if self._overdue:
            self._overdue = False
            raise Interrupted(self.signum)
        if now_s - self._first_s >= SAME_REQUEST_S:
            _say(f"second {signal.Signals(signum).name}: ended at once")
            os._exit(128 + signum)

    def finish_in_time(self) -> None:
        """Nobody need be hurried any more: what remains is a save, or the end of the process."""
        self._in_time.set()

    def _watch(self) -> None:
        """In a thread: give up an iteration, and in the end the process, that takes too long."""
        if self._in_time.wait(GRACE_S):
            return
        self._overdue = True
        # A real signal, so that a system call of the main thread returns.
        signal.pthread_kill(threading.main_thread().ident or 0, self.signum)
        if not self._in_time.wait(CLEAN_UP_S):
            _say(f"did not end within {GRACE_S + CLEAN_UP_S:g} s: ended at once, without a new checkpoint")
            os._exit(128 + self.signum)


_handler: _Handler | None = None
"""Of this process, while `handled` is active."""


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Handle signals in this block as the module says; in other threads than the main one, do nothing."""
    global _handler
    if _handler is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    _handler = _Handler()
    before = {number: signal.signal(number, _handler) for number in SIGNALS}
    try:
        yield
    finally:
        _handler.finish_in_time()
        for number, handler in before.items():
            signal.signal(number, handler)
        _handler = None


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """In this block a signal raises nothing; it is raised at the end of the block, if nobody did before."""
    handler = _handler
    if handler is None or handler.deferred:
        yield
        return
    handler.deferred = True
    try:
        yield
    finally:
        handler.deferred = False
    if handler.signum:
        raise Interrupted(handler.signum)


@contextlib.contextmanager
def given_up_on_signal() -> Iterator[None]:
    """A block within `deferred` that changes nothing: a signal ends it, and the program goes on behind it."""
    handler = _handler
    if handler is None or not handler.deferred:
        yield
        return
    handler.deferred = False
    try:
        yield
    except Interrupted:
        pass
    finally:
        handler.deferred = True


def agree_to_stop(distributed: Distributed) -> int:
    """The signal after which all ranks stop now; 0 where they go on. All ranks call it after an iteration."""
    signum = distributed.largest(_handler.signum if _handler else 0)
    if signum and _handler:
        _handler.finish_in_time()
    return signum


def _say(text: str) -> None:
    """One line on stderr, past its buffer, which the signal may have interrupted."""
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode())
