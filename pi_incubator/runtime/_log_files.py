"""The files of a step log: chunks as .npz or Parquet, rows of a chunk that is not full, and their conversion.

Letters: N steps, D observation width, U targets.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ._network import Array
from .contract import Contract, read_contract
from .errors import LogError

CONTRACT = "contract.json"
CHUNK_NAME = re.compile(r"(\d{6,})\.(npz|parquet|rows)")


@dataclass
class Chunk:
    """N steps: wall clock in ns since 1970 `[N]`, flags `[N]`, observations `[N, D]`, targets `[N, U]`."""

    time_ns: np.ndarray
    flags: np.ndarray
    observation: Array
    target: Array

    @classmethod
    def empty(cls, size: int, contract: Contract) -> Chunk:
        """Room for `size` steps."""
        return cls(
            np.zeros(size, np.int64),
            np.zeros(size, np.int32),
            np.zeros((size, contract.observation_width), np.float32),
            np.zeros((size, contract.num_targets), np.float32),
        )

    def first(self, count: int) -> Chunk:
        """Views of the first `count` steps."""
        return Chunk(self.time_ns[:count], self.flags[:count], self.observation[:count], self.target[:count])


def write_npz(path: Path, chunk: Chunk, contract: Contract) -> None:
    """Write a chunk as arrays of its fields' names."""
    del contract  # it lies beside the chunks
    with path.open("wb") as file:
        np.savez(file, **vars(chunk))


def read_npz(path: Path, contract: Contract) -> Chunk:
    """The chunk in a file of `write_npz`.

    Raises:
        LogError: it is cut short, or its arrays are not the contract's.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            chunk = Chunk(**{name: arrays[name] for name in arrays.files})
    # Of a damaged file numpy and zipfile raise what they happen to meet.
    except Exception as error:
        raise LogError(f"{path}: is no chunk of a log ({error}); remove it") from None
    size = len(chunk.time_ns)
    for name, expected in vars(Chunk.empty(size, contract)).items():
        found = getattr(chunk, name)
        if (found.shape, found.dtype) != (expected.shape, expected.dtype):
            raise LogError(f"{path}: {name} is {found.dtype} {found.shape}, not the contract's; remove it")
    return chunk


def write_parquet(path: Path, chunk: Chunk, contract: Contract) -> None:
    """Write a chunk as one Parquet file."""
    import pyarrow.parquet

    pyarrow.parquet.write_table(_table(chunk, contract), path)


def append_rows(path: Path, chunk: Chunk, start: int, stop: int) -> None:
    """Put the steps `start` to `stop` of a chunk into its rows file, and wait until the disk has them.

    A row is time_ns, flags, observation, target, little-endian without gaps, and the CRC-32 of all that.
    """
    row = _row_type(chunk.observation.shape[1], chunk.target.shape[1])
    rows = np.zeros(stop - start, row)
    for name, values in vars(chunk).items():
        rows[name] = values[start:stop]
    rows["crc"] = [_crc(one) for one in rows]
    data, at = memoryview(rows.tobytes()), start * row.itemsize
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        while data:
            num_written = os.pwrite(descriptor, data, at)
            data, at = data[num_written:], at + num_written
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)


def read_rows(path: Path, contract: Contract) -> Chunk:
    """The steps in a rows file, up to the first row that is not whole.

    Raises:
        LogError: it cannot be read.
    """
    row = _row_type(contract.observation_width, contract.num_targets)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LogError(f"{path}: cannot be read ({error.strerror})") from None
    rows = np.frombuffer(data[: len(data) // row.itemsize * row.itemsize], row)
    count = next((i for i, one in enumerate(rows) if one["crc"] != _crc(one)), len(rows))
    return Chunk(**{name: np.ascontiguousarray(rows[name][:count]) for name in (row.names or ())[:-1]})


def sync(path: Path) -> None:
    """Wait until the disk has the content of a file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def has_pyarrow() -> bool:
    """Whether Parquet can be written here."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        return False
    return True


def convert_to_parquet(folder: Path, out: Path) -> int:
    """Write all steps of a log, in order, to the Parquet file `out`; returns how many there are.

    Raises:
        LogError: there is no log in `folder`, a chunk cannot be read, `out` is there already or cannot be
            written, or pyarrow is missing.
    """
    if not has_pyarrow():
        raise LogError("pyarrow: not installed; pip install pyarrow, or convert the log on another machine")
    import pyarrow.parquet

    paths = _chunk_paths(folder)
    if not paths:
        raise LogError(
            f"{folder}: holds no chunk of a log; name the folder of a log that pi-runtime run wrote"
        )
    if os.path.lexists(out):
        raise LogError(f"{out}: is there already; name another file")
    contract = read_contract(folder / CONTRACT)
    num_steps = 0
    part = out.with_name(f"{out.name}.part")
    try:
        with pyarrow.parquet.ParquetWriter(part, _schema(contract)) as writer:
            for path in paths:
                table = _read_table(path, contract)
                writer.write_table(table)
                num_steps += table.num_rows
        part.replace(out)
    except OSError as error:
        raise LogError(f"{out}: cannot be written ({error.strerror}); name another file") from None
    finally:
        part.unlink(missing_ok=True)
    return num_steps


def _chunk_paths(folder: Path) -> list[Path]:
    """The files of a log, one for each chunk, in order; the rows file only where the chunk has no other."""
    paths: dict[int, Path] = {}
    for path in sorted(folder.glob("*")):  # .npz and .parquet come before .rows
        match = CHUNK_NAME.fullmatch(path.name)
        if match:
            paths.setdefault(int(match[1]), path)
    return [paths[number] for number in sorted(paths)]


def _read_table(path: Path, contract: Contract) -> Any:
    """The steps of one file of a log.

    Raises:
        LogError: it is no chunk of this contract.
    """
    if path.suffix == ".npz":
        return _table(read_npz(path, contract), contract)
    if path.suffix == ".rows":
        return _table(read_rows(path, contract), contract)
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise LogError(f"{path}: is no chunk of a log ({error}); remove it") from None
    if not table.schema.equals(_schema(contract)):
        raise LogError(f"{path}: its columns are not the contract's; remove it")
    return table


def _row_type(observation_width: int, num_targets: int) -> np.dtype:
    return np.dtype(
        [
            ("time_ns", "<i8"),
            ("flags", "<i4"),
            ("observation", "<f4", (observation_width,)),
            ("target", "<f4", (num_targets,)),
            ("crc", "<u4"),
        ]
    )


def _crc(row: np.void) -> int:
    return zlib.crc32(row.tobytes()[:-4])


def _schema(contract: Contract) -> Any:
    import pyarrow

    fields = [
        ("time_ns", pyarrow.int64()),
        ("flags", pyarrow.int32()),
        ("observation", pyarrow.list_(pyarrow.float32(), contract.observation_width)),
        ("target", pyarrow.list_(pyarrow.float32(), contract.num_targets)),
    ]
    return pyarrow.schema(fields, metadata={"contract": json.dumps(contract.raw, sort_keys=True)})


def _table(chunk: Chunk, contract: Contract) -> Any:
    import pyarrow

    def rows(array: Array) -> Any:
        return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(array.reshape(-1)), array.shape[1])

    columns = [chunk.time_ns, chunk.flags, rows(chunk.observation), rows(chunk.target)]
    return pyarrow.table(columns, schema=_schema(contract))
