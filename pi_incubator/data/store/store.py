"""A store of trajectories in LanceDB: append, filter, search by similarity, and compact.

Letters: S steps, D observation width, E width of an embedding, k neighbours.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
from lancedb.index import BTree, IvfFlat
from lancedb.table import Table

from pi_incubator.data.datasets.layout import Array, DatasetError, Episode, Manifest
from pi_incubator.data.store.columns import (
    EMBEDDING,
    About,
    Origin,
    about_of,
    array_of,
    episodes_of,
    from_metadata,
    tables_of,
)
from pi_incubator.errors import UserError

FRAMES, EPISODES, LOCK = "frames", "episodes", ".lock"
MAX_TABLES = 1_000
RATE_TOLERANCE = 1e-6
"""Relative difference of two control rates that are the same number."""
STEPS_OF_APPEND = 2**16
"""Steps that are written at a time."""
MIN_ROWS_OF_INDEX = 10_000
"""Below that a search looks at every row, which is as fast."""
ROWS_OF_PARTITION = 4_096
MIN_AGE = timedelta(days=1)
"""Of the versions that compacting removes: a reader may still use a younger one."""


@dataclass(frozen=True)
class Neighbours:
    """What `Store.retrieve` found, the nearest first."""

    columns: dict[str, Array]
    """Column of the frames -> `[k]` or `[k, D]`."""
    distance: Array
    """`[k]` float32, Euclidean, between embeddings."""


class Store:
    """Trajectories of one task. `open_store` opens one that is there, `create_store` makes one.

    Args:
        path: folder, or `s3://BUCKET/PREFIX`.
        frames: the table of steps.
        episodes: the table of episodes.
    """

    def __init__(self, path: str, frames: Table, episodes: Table) -> None:
        self.path, self._frames, self._episodes = path, frames, episodes
        self.about: About = from_metadata(frames.schema.metadata, path)

    @property
    def manifest(self) -> Manifest:
        """The task and the forms of its observations and actions."""
        return self.about.manifest

    def append(self, episodes: Sequence[Episode], origin: Origin) -> int:
        """Add whole episodes; when this returns, they are there whatever happens to this process.

        Returns:
            Steps that were added.

        Raises:
            UserError: they cannot be written.
        """
        num_steps = 0
        for piece in in_pieces(episodes):
            frames, rows = tables_of(self.about, piece, origin)
            with _writing(self.path):
                self._frames.add(frames)
                self._episodes.add(rows)  # what makes them part of the store
            num_steps += frames.num_rows
        return num_steps

    def rows(self, where: str | None = None) -> pa.Table:
        """The table of episodes, or of those for which an SQL condition holds: `return > 1000`.

        Raises:
            UserError: the condition is not valid SQL.
        """
        self._episodes.checkout_latest()
        search = self._episodes.search()
        return _answer(self.path, search.where(where) if where else search)

    def episodes(self, where: str | None = None) -> Iterator[Episode]:
        """Yield the episodes for which a condition on the table of episodes holds, always in the same order.

        Raises:
            UserError: the condition is not valid SQL.
        """
        rows = self.rows(where).sort_by("episode")
        self._frames.checkout_latest()
        for piece in _row_pieces(rows):
            numbers = ", ".join(map(str, array_of(piece, "episode")))
            frames = _answer(self.path, self._frames.search().where(f"episode IN ({numbers})"))
            yield from episodes_of(self.about, frames, piece)

    def fingerprint(self, where: str | None = None) -> str:
        """SHA-256 of which episodes there are; compacting does not change it."""
        numbers = np.sort(array_of(self.rows(where), "episode"))
        return hashlib.sha256(numbers.tobytes()).hexdigest()

    def retrieve(
        self, observation: Array, k: int, where: str | None = None, columns: Sequence[str] = ("return_to_go",)
    ) -> Neighbours:
        """The k steps whose observations are nearest to a raw one, in standard deviations.

        Args:
            observation: `[D]` of the group that is embedded.
            k: how many.
            where: SQL condition on the frames, such as `return_to_go > 100`.
            columns: what of them is wanted; `episode` and `frame_index` say which they are.

        Raises:
            UserError: the observation has another width, or the condition is not valid SQL.
        """
        width = len(self.about.mean)
        if observation.shape != (width,):
            problem = f"an observation of width {width} is searched for, not {list(observation.shape)}"
            raise UserError(f"{self.path}: {problem}; name one of {self.manifest.env}")
        return self._nearest(self.about.embed(observation), k, where, columns)

    def _nearest(self, embedding: Array, k: int, where: str | None, columns: Sequence[str]) -> Neighbours:
        """The k nearest steps of episodes of the store: a writer that was killed may have left others."""
        known, count = array_of(self.rows(), "episode"), k
        self._frames.checkout_latest()
        names = [*dict.fromkeys((*columns, "episode")), "_distance"]
        while True:
            search = self._frames.search(embedding, vector_column_name=EMBEDDING).select(names).limit(count)
            found = _answer(self.path, search.where(where, prefilter=True) if where else search)
            kept = found.filter(pa.array(np.isin(array_of(found, "episode"), known)))
            if len(kept) >= k or len(found) < count:
                break
            count *= 2
        kept = kept.slice(0, k)
        distance: Array = np.sqrt(array_of(kept, "_distance"))
        return Neighbours({name: array_of(kept, name) for name in columns}, distance)

    def like(self, episode: int, step: int, k: int, where: str | None = None) -> Neighbours:
        """The k steps that are most like one of the store, which is the first of them.

        Raises:
            UserError: there is no such step.
        """
        condition = f"episode = {episode} AND frame_index = {step}"
        found = _answer(self.path, self._frames.search().where(condition).select([EMBEDDING]))
        if not len(found):
            raise UserError(f"{self.path}: has no step {episode}:{step}; pi-store ls shows the episodes")
        return self._nearest(
            array_of(found, EMBEDDING)[0], k, where, ("episode", "frame_index", "return_to_go")
        )

    def compact(self) -> None:
        """Join small files, remove old versions, and bring the indices up to date.

        Raises:
            UserError: it cannot be written.
        """
        with _writing(self.path):
            self._frames.checkout_latest()
            if self._frames.count_rows() >= MIN_ROWS_OF_INDEX:
                self._index()
            for table in (self._frames, self._episodes):
                table.optimize(cleanup_older_than=MIN_AGE)

    def num_steps(self) -> int:
        """Steps of all episodes."""
        return int(array_of(self.rows(), "length").sum())

    def _index(self) -> None:
        existing = {column for index in self._frames.list_indices() for column in index.columns}
        if EMBEDDING not in existing:
            partitions = max(1, self._frames.count_rows() // ROWS_OF_PARTITION)
            config = IvfFlat(distance_type="l2", num_partitions=partitions)
            self._frames.create_index(EMBEDDING, config=config)
        if "episode" not in existing:
            self._frames.create_index("episode", config=BTree())


def open_store(path: str) -> Store:
    """The store in `path`.

    Raises:
        DatasetError: there is none, or it is damaged or of a later version.
    """
    fix = "name a folder that pi-store import wrote"
    if "://" not in path and not Path(path).is_dir():  # LanceDB would make the folder
        raise DatasetError(path, "is not there", fix)
    try:
        database = lancedb.connect(path)
        return Store(path, database.open_table(FRAMES), database.open_table(EPISODES))
    except (ValueError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise DatasetError(
            path, f"is not a store ({reason})", "name a folder that pi-store import wrote"
        ) from None


def create_store(path: str, manifest: Manifest, first: Sequence[Episode]) -> Store:
    """Make an empty store for steps of `manifest`, or open the one that is there.

    Args:
        path: folder, or `s3://BUCKET/PREFIX`.
        manifest: of all its steps.
        first: some episodes, whose observations the embeddings are normalized by.

    Raises:
        DatasetError: the store there is of another task or another form.
        UserError: it cannot be written.
    """
    with _writing(path), _one_at_a_time(path):
        database = lancedb.connect(path)
        missing = {FRAMES, EPISODES} - set(database.table_names(limit=MAX_TABLES))
        if missing:
            made = tables_of(about_of(manifest, first, path), first[:1], Origin("import"))
            for name, table in zip((FRAMES, EPISODES), made, strict=True):
                if name in missing:
                    database.create_table(name, schema=table.schema)
    store = open_store(path)
    if difference := _difference(store.manifest, manifest):
        raise DatasetError(path, f"has steps of {store.manifest.env}: {difference}", "name another store")
    return store


def _difference(ours: Manifest, theirs: Manifest) -> str | None:
    """The first field in which two manifests differ, with both values."""
    theirs = _with_rate(theirs, ours.control_hz)
    for field in fields(Manifest):
        one, other = getattr(ours, field.name), getattr(theirs, field.name)
        if one != other:
            return f"its {field.name} is {one}, that of the new ones {other}"
    return None


def _with_rate(manifest: Manifest, control_hz: float) -> Manifest:
    """With the given rate, where it is the same but for rounding."""
    same = abs(manifest.control_hz - control_hz) <= RATE_TOLERANCE * control_hz
    return replace(manifest, control_hz=control_hz) if same else manifest


@contextlib.contextmanager
def _one_at_a_time(path: str) -> Iterator[None]:
    """Let one program make the tables of a store on a disk; a bucket has no such lock (docs/store.md)."""
    if "://" in path:
        yield
        return
    Path(path).mkdir(parents=True, exist_ok=True)
    with open(Path(path) / LOCK, "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def in_pieces(episodes: Iterable[Episode]) -> Iterator[list[Episode]]:
    """Yield the episodes in groups of about `STEPS_OF_APPEND` steps."""
    piece, num_steps = [], 0
    for episode in episodes:
        piece.append(episode)
        num_steps += len(episode.reward)
        if num_steps >= STEPS_OF_APPEND:
            yield piece
            piece, num_steps = [], 0
    if piece:
        yield piece


def _row_pieces(rows: pa.Table) -> Iterator[pa.Table]:
    """Yield rows of the table of episodes in groups of about `STEPS_OF_APPEND` steps."""
    start = num_steps = 0
    for index, length in enumerate(array_of(rows, "length")):
        num_steps += int(length)
        if num_steps >= STEPS_OF_APPEND:
            yield rows.slice(start, index + 1 - start)
            start, num_steps = index + 1, 0
    if start < len(rows):
        yield rows.slice(start)


def _answer(path: str, search: Any) -> pa.Table:
    """What a query finds.

    Raises:
        UserError: its condition is not valid SQL.
    """
    try:
        return search.to_arrow()
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        fix = "write SQL on columns of docs/store.md, such as length > 100"
        raise UserError(f"{path}: the query is refused ({reason}); {fix}") from None


@contextlib.contextmanager
def _writing(path: str) -> Iterator[None]:
    """Report what a full disk, a missing permission or a refused bucket says, as one line."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path}: cannot be written ({reason}); check space, permissions and credentials"
        ) from None
