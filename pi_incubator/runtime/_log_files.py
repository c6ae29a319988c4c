"""The files of a step log: chunks as .npz or Parquet, and the conversion between them.

Letters: N steps, D observation width, U targets.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ._network import Array
from .contract import Contract, read_contract
from .errors import LogError

CONTRACT = "contract.json"


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
    except (OSError, ValueError, TypeError, zipfile.BadZipFile) as error:
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


def has_pyarrow() -> bool:
    """Whether Parquet can be written here."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        return False
    return True


def convert_to_parquet(folder: Path, out: Path) -> int:
    """Write all .npz chunks of a log, in order, to the Parquet file `out`; returns how many steps.

    Raises:
        LogError: there is no log in `folder`, a chunk cannot be read, or pyarrow is missing.
    """
    if not has_pyarrow():
        raise LogError("pyarrow: not installed; pip install pyarrow, or convert the log on another machine")
    import pyarrow.parquet

    paths = sorted(folder.glob("*.npz"))
    if not paths:
        raise LogError(f"{folder}: holds no .npz chunk; name the folder of a log that pi-runtime run wrote")
    contract = read_contract(folder / CONTRACT)
    num_steps = 0
    try:
        with pyarrow.parquet.ParquetWriter(out, _schema(contract)) as writer:
            for path in paths:
                table = _table(read_npz(path, contract), contract)
                writer.write_table(table)
                num_steps += table.num_rows
    except OSError as error:
        raise LogError(f"{out}: cannot be written ({error.strerror}); name another file") from None
    return num_steps


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
