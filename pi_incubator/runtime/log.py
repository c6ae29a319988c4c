"""Every step of a policy, kept for the replay store, at a bounded cost in time and memory."""

from __future__ import annotations

import json
import queue
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ._log_files import CONTRACT, Chunk, append_rows, has_pyarrow, sync, write_npz, write_parquet
from ._network import Array
from .contract import Contract
from .errors import LogError

STEPS_PER_CHUNK = 1000
SAVE_EVERY_S = 0.2  # with the time that the disk takes, what a killed process loses; the docs promise 1 s
NUM_CHUNKS = 4  # one is filled, the others wait to be written: seconds of a slow disk
FORMATS = {"npz": write_npz, "parquet": write_parquet}


class NullLog:
    """Keeps nothing."""

    dropped = 0

    def add(self, observation: Array, target: Array, flags: int) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


@dataclass
class _Buffer:
    """A chunk of the log in memory: `count` steps of it are filled, `num_saved` are in its rows file."""

    chunk: Chunk
    number: int = 0
    count: int = 0
    num_saved: int = 0


class StepLog:
    """A folder of chunks, each a file, written by a thread of its own.

    A step is copied into memory that was set aside at the start. Every `SAVE_EVERY_S` the new steps of the
    chunk that is being filled are appended to its rows file, so that a process that is killed loses no more
    than the steps since then; the rows file goes when the chunk is written. Where the disk is too slow, or
    fails, steps are dropped and counted: control does not wait for a log.

    Args:
        folder: to make, or an empty one.
        contract: gives the widths, and is written beside the chunks.
        format: "npz", "parquet", or None: Parquet where pyarrow is installed.
        steps_per_chunk: in a file.

    Raises:
        LogError: the folder cannot be made or is not empty, or Parquet is asked for without pyarrow.
    """

    def __init__(
        self,
        folder: Path,
        contract: Contract,
        *,
        format: str | None = None,
        steps_per_chunk: int = STEPS_PER_CHUNK,
    ) -> None:
        self.written = 0  # steps that are in a file
        self._folder, self._contract = folder, contract
        self._format = format or ("parquet" if has_pyarrow() else "npz")
        _prepare(folder, contract, self._format)
        self._size = steps_per_chunk
        # The clock may be set during a run; the times of a log go on evenly.
        self._epoch_ns = time.time_ns() - time.monotonic_ns()
        self._buffer = _Buffer(Chunk.empty(steps_per_chunk, contract))
        self._free: queue.SimpleQueue[_Buffer] = queue.SimpleQueue()
        self._full: queue.SimpleQueue[_Buffer | None] = queue.SimpleQueue()
        for _ in range(NUM_CHUNKS - 1):
            self._free.put(_Buffer(Chunk.empty(steps_per_chunk, contract)))
        self._num_taken = 0  # by `add`; only the caller's thread counts here
        self._num_refused = 0  # likewise
        self._num_failed = 0  # to be written; only the writer thread counts here
        self._error: BaseException | None = None
        self._is_open = True
        self._thread = threading.Thread(target=self._run_writer, name="step-log", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Steps that are not, and will not be, in the log."""
        return self._num_refused + self._num_failed

    def add(self, observation: Array, target: Array, flags: int) -> None:
        """Keep a step: `observation` `[D]`, `target` `[U]`, `flags` of it; all are copied."""
        if not self._is_open or (self._buffer.count == self._size and not self._take_empty_buffer()):
            self._num_refused += 1
            return
        buffer = self._buffer
        chunk, i = buffer.chunk, buffer.count
        chunk.time_ns[i] = time.monotonic_ns() + self._epoch_ns
        chunk.flags[i] = flags
        chunk.observation[i] = observation
        chunk.target[i] = target
        buffer.count = i + 1  # not before: the writer thread may read every step that is counted
        self._num_taken += 1

    def close(self) -> None:
        """Write what is left and end the thread.

        Raises:
            LogError: steps could not be written.
        """
        if self._is_open and self._buffer.count:
            self._full.put(self._buffer)
        self._full.put(None)
        self._thread.join()
        self._is_open = False
        if self._error:
            self._num_failed = self._num_taken - self.written
            reason = getattr(self._error, "strerror", None) or f"{type(self._error).__name__}: {self._error}"
            problem = f"cannot be written ({reason}), {self.dropped} steps are lost"
            raise LogError(f"{self._folder}: {problem}; log to another disk")

    def _take_empty_buffer(self) -> bool:
        """Give the full buffer to the thread and take an empty one; False while there is none."""
        try:
            empty = self._free.get_nowait()
        except queue.Empty:
            return False
        empty.number, empty.count, empty.num_saved = self._buffer.number + 1, 0, 0
        self._full.put(self._buffer)
        self._buffer = empty
        return True

    def _run_writer(self) -> None:
        """The thread: whatever ends it too early is kept for `close`, and no step is taken after it."""
        try:
            while True:
                try:
                    buffer = self._full.get(timeout=SAVE_EVERY_S)
                except queue.Empty:
                    self._save_rows(self._buffer)
                    continue
                if buffer is None:
                    return
                self._write(buffer)
                self._free.put(buffer)
        except BaseException as error:
            self._error = error
            self._is_open = False

    def _save_rows(self, buffer: _Buffer) -> None:
        """Append the steps since the last time to the rows file of a buffer that is being filled."""
        count = buffer.count
        if count > buffer.num_saved:
            # A disk that is full now may have room when the chunk is written, and the steps are still here.
            with suppress(OSError):
                append_rows(self._rows_path(buffer), buffer.chunk, buffer.num_saved, count)
                self.written += count - buffer.num_saved
                buffer.num_saved = count

    def _write(self, buffer: _Buffer) -> None:
        """Write a chunk's own file; a disk that fails costs this chunk, and the next may be written again."""
        path = self._folder / f"{buffer.number:06d}.{self._format}"
        part = path.with_suffix(".part")
        try:
            FORMATS[self._format](part, buffer.chunk.first(buffer.count), self._contract)
            sync(part)
            part.replace(path)
        except OSError as error:
            self._error = error
            self._num_failed += buffer.count - buffer.num_saved
            with suppress(OSError):
                part.unlink(missing_ok=True)  # half of a chunk helps nobody, and takes room
            return
        self.written += buffer.count - buffer.num_saved
        with suppress(OSError):
            self._rows_path(buffer).unlink(missing_ok=True)

    def _rows_path(self, buffer: _Buffer) -> Path:
        return self._folder / f"{buffer.number:06d}.rows"


def _prepare(folder: Path, contract: Contract, format: str) -> None:
    if format not in FORMATS:
        raise LogError(f"log format: {format!r} is not one of {', '.join(FORMATS)}")
    if format == "parquet" and not has_pyarrow():
        raise LogError("pyarrow: not installed; pip install pyarrow, or log as npz")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise LogError(f"{folder}: is not empty; name another folder")
        text = json.dumps(contract.raw, sort_keys=True, indent=2)
        (folder / CONTRACT).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise LogError(f"{folder}: cannot be written ({error.strerror}); name another folder") from None
