"""Every step of a policy, kept for the replay store, at a bounded cost in time and memory."""

from __future__ import annotations

import json
import queue
import threading
import time
from pathlib import Path

from ._log_files import CONTRACT, Chunk, has_pyarrow, write_npz, write_parquet
from ._network import Array
from .contract import Contract
from .errors import LogError

STEPS_PER_CHUNK = 1000
NUM_CHUNKS = 4  # one is filled, the others wait to be written: seconds of a slow disk
FORMATS = {"npz": write_npz, "parquet": write_parquet}


class NullLog:
    """Keeps nothing."""

    dropped = 0

    def add(self, observation: Array, target: Array, flags: int) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class StepLog:
    """A folder of chunks, each a file, written by a thread of its own.

    A step is copied into memory that was set aside at the start. Where the disk is too slow, or fails, steps
    are dropped and counted: control does not wait for a log.

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
        self.dropped = 0
        self.written = 0
        self._folder, self._contract = folder, contract
        self._format = format or ("parquet" if has_pyarrow() else "npz")
        _prepare(folder, contract, self._format)
        self._size = steps_per_chunk
        self._chunk = Chunk.empty(steps_per_chunk, contract)
        self._count = 0
        self._free: queue.SimpleQueue[Chunk] = queue.SimpleQueue()
        self._full: queue.SimpleQueue[tuple[Chunk, int] | None] = queue.SimpleQueue()
        for _ in range(NUM_CHUNKS - 1):
            self._free.put(Chunk.empty(steps_per_chunk, contract))
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._write_all, name="step-log", daemon=True)
        self._thread.start()

    def add(self, observation: Array, target: Array, flags: int) -> None:
        """Keep a step: `observation` `[D]`, `target` `[U]`, `flags` of it; all are copied."""
        chunk, i = self._chunk, self._count
        chunk.time_ns[i] = time.time_ns()
        chunk.flags[i] = flags
        chunk.observation[i] = observation
        chunk.target[i] = target
        self._count = i + 1
        if self._count == self._size:
            self._turn_over()

    def close(self) -> None:
        """Write what is left and end the thread.

        Raises:
            LogError: a chunk could not be written.
        """
        if self._count:
            self._full.put((self._chunk, self._count))
        self._full.put(None)
        self._thread.join()
        if self._error:
            problem = f"cannot be written ({self._error.strerror}), {self.dropped} steps are lost"
            raise LogError(f"{self._folder}: {problem}; log to another disk")

    def _turn_over(self) -> None:
        """Give the full chunk to the thread and take an empty one; without one, its steps are lost."""
        try:
            empty = self._free.get_nowait()
        except queue.Empty:
            self.dropped += self._count
        else:
            self._full.put((self._chunk, self._count))
            self._chunk = empty
        self._count = 0

    def _write_all(self) -> None:
        write = FORMATS[self._format]
        number = 0
        while (entry := self._full.get()) is not None:
            chunk, count = entry
            path = self._folder / f"{number:06d}.{self._format}"
            part = path.with_suffix(".part")
            try:
                write(part, chunk.first(count), self._contract)
                part.replace(path)
                self.written += count
                number += 1
            except OSError as error:
                self._error = error
                self.dropped += count
            self._free.put(chunk)


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
