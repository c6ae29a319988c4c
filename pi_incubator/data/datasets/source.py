"""The episodes of what `dataset.path` names: see `pi_incubator.config.dataset_address`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pi_incubator.config.dataset_address import StoreAddress, parse_address
from pi_incubator.data.datasets.layout import Episode, Manifest, read_episodes, read_manifest
from pi_incubator.errors import UserError

if TYPE_CHECKING:
    from pi_incubator.data.store.store import Store


def read_source(text: str) -> tuple[Manifest, Iterator[Episode]]:
    """The manifest and the episodes of what `text` names.

    Raises:
        DatasetError: it is missing or damaged.
        UserError: the condition is not valid SQL, or LanceDB is missing.
    """
    address = parse_address(text)
    if address is None:
        folder = Path(text)
        manifest = read_manifest(folder)
        return manifest, read_episodes(folder, manifest)
    store = _open(address)
    return store.manifest, store.episodes(address.where)


def fingerprint_of(address: StoreAddress) -> str:
    """SHA-256 of which episodes of a store are meant.

    Raises:
        DatasetError: there is no such store.
        UserError: the condition is not valid SQL, or LanceDB is missing.
    """
    return _open(address).fingerprint(address.where)


def _open(address: StoreAddress) -> Store:
    try:
        from pi_incubator.data.store.store import open_store
    except ModuleNotFoundError as error:
        raise UserError(f"{address}: a store needs {error.name}; pip install -e '.[store]'") from None
    return open_store(address.path)
