"""Standard output and error that lose characters instead of ending the command."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import TextIO


class _Descriptor(io.RawIOBase):
    """A file descriptor; what it does not take is lost.

    After the first failure (a closed pipe, a full disk, a terminal that is gone) it writes to nowhere, and so
    do libraries that write to the same descriptor.
    """

    def __init__(self, number: int) -> None:
        self._number = number

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._number

    def isatty(self) -> bool:
        return os.isatty(self._number)

    def write(self, data: object) -> int:
        view = memoryview(data)  # type: ignore[arg-type]
        try:
            return os.write(self._number, view)
        except OSError:
            with contextlib.suppress(OSError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._number)
                os.close(nowhere)
            return len(view)


def protect_output() -> None:
    """Replace the process's own `sys.stdout` and `sys.stderr`; those that somebody has replaced stay."""
    if sys.stdout is sys.__stdout__:
        sys.stdout = _protected(sys.stdout, 1)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _protected(sys.stderr, 2)


def _protected(stream: TextIO | None, number: int) -> TextIO:
    """A stream on the same descriptor, in which a character that cannot be encoded becomes `?`."""
    if stream is None:  # closed by whoever started the process
        return open(os.devnull, "w", encoding="utf-8")
    with contextlib.suppress(OSError):
        stream.flush()
    by_line = getattr(stream, "line_buffering", False) or getattr(stream, "write_through", False)
    buffered = io.BufferedWriter(_Descriptor(number))
    return io.TextIOWrapper(buffered, encoding=stream.encoding, errors="replace", line_buffering=by_line)
