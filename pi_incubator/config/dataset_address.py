"""The text of `dataset.path`: a folder of recorded steps, or some episodes of a store.

data/half_cheetah                      a folder that training.record or pi-data import wrote
store:data/store                       all episodes of a store
store:s3://bucket/store?where=return > 1000 AND source = 'robot'
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

STORE, WHERE = "store:", "?where="


class StoreAddress(NamedTuple):
    """Some episodes of a store."""

    path: str
    where: str | None
    """SQL condition on the table of episodes; None for all of them."""

    def __str__(self) -> str:
        return f"{STORE}{self.path}" + (f"{WHERE}{self.where}" if self.where else "")


def parse_address(text: str) -> StoreAddress | None:
    """The store that `text` names; None where it is a folder."""
    if not text.startswith(STORE):
        return None
    path, _, where = text.removeprefix(STORE).partition(WHERE)
    return StoreAddress(path, where or None)


def absolute(text: str) -> str:
    """`text` with an absolute path; that of a bucket stays."""
    address = parse_address(text)
    if address is None:
        return str(Path(text).expanduser().absolute())
    if "://" in address.path:
        return text
    return str(address._replace(path=str(Path(address.path).expanduser().absolute())))
