"""MLflow: an SQLite file beside the runs, unless a server or another store is named.

`tracking.uri` counts first, then the environment variable `MLFLOW_TRACKING_URI`.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import sqlite3
import textwrap
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

# MLflow reads these at import. It would report usage to its makers, and wait minutes for a wrong address or a
# server that does not answer.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from pi_incubator.config import ConfigError, ExperimentConfig, RunSettingError
from pi_incubator.masking import masked
from pi_incubator.provenance import git_state
from pi_incubator.registry import tracker
from pi_incubator.run_folder import RunFolder
from pi_incubator.tracking._base import Status, Tracker

EXPERIMENT = "pi_incubator"
MAX_METRICS_PER_REQUEST = 1000  # MLflow's own limits
MAX_PARAMS_PER_REQUEST = 100
SECONDS_BETWEEN_REQUESTS = 5.0
MAX_REASON = 300  # characters of MLflow's own words in an error
SQLITE = "sqlite:///"
VARIABLE, DEFAULT = "environment variable MLFLOW_TRACKING_URI", "default"
FOLDER = "pi_incubator.folder"
"""Tag of an MLflow run: where its run folder is."""
ARTIFACTS = "mlartifacts"
"""The folder beside our own SQLite file that holds artifacts."""
ARTIFACT_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("model_versions", "storage_location"),
    ("logged_models", "artifact_location"),
)
"""Where MLflow's tables hold absolute addresses of artifacts."""
STATUSES = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}

log = logging.getLogger(__name__)


@tracker("mlflow")
class MlflowTracker(Tracker):
    """One MLflow run a run folder; a continued run continues its MLflow run.

    Metrics are sent in batches every few seconds. If the store fails in mid-run they are kept and sent with
    the next batch: training does not depend on it.

    Raises:
        ConfigError: the store cannot be opened.
    """

    def __init__(self, cfg: ExperimentConfig, folder: RunFolder, start_iteration: int = 0) -> None:
        print(f"MLflow: {find_store(cfg, folder)}")
        with open_store(cfg, folder) as self._client:
            run = self._continued_run(cfg, folder) if start_iteration else None
            run = run or new_run(self._client, cfg, folder)
        self._run_id = run.info.run_id
        self._params = dict(run.data.params)
        folder.mlflow_run_id.write_text(self._run_id, encoding="utf-8")
        self._pending: list[Metric] = []
        self._sent_s = time.perf_counter()

    def log(self, iteration: int, env_steps: int, metrics: Mapping[str, float]) -> None:
        now_ms = time.time_ns() // 1_000_000
        for name, value in {**metrics, "env_steps": env_steps}.items():
            self._pending.append(Metric(name, value, now_ms, iteration))
        if time.perf_counter() - self._sent_s >= SECONDS_BETWEEN_REQUESTS:
            self._send()

    def log_params(self, params: Mapping[str, Any]) -> None:
        new = [Param(name, str(value)) for name, value in params.items() if name not in self._params]
        # MLflow does not let a parameter change: what a continued run does differently becomes a tag.
        changed = [
            RunTag(f"continued.{name}", str(value))
            for name, value in params.items()
            if self._params.get(name, str(value)) != str(value)
        ]
        for start in range(0, len(new), MAX_PARAMS_PER_REQUEST):
            self._client.log_batch(self._run_id, params=new[start : start + MAX_PARAMS_PER_REQUEST])
        self._client.log_batch(self._run_id, tags=changed)

    def log_artifact(self, path: Path) -> None:
        try:
            self._client.log_artifact(self._run_id, str(path))
        except (MlflowException, OSError) as error:
            log.warning("MLflow did not take %s (%s); it stays in the run folder", path, _reason(error))

    def close(self, status: Status = "finished") -> None:
        self._send()
        try:
            self._client.set_terminated(self._run_id, STATUSES[status])
        except MlflowException as error:
            log.warning("MLflow did not take the end of the run (%s)", _reason(error))

    def _continued_run(self, cfg: ExperimentConfig, folder: RunFolder) -> Run | None:
        """The MLflow run of this folder, set running again under the folder's present name.

        None where the store does not have it, or where this folder is a copy: the MLflow run stays that of
        the folder that was copied.
        """
        if not folder.mlflow_run_id.exists():
            return None
        run_id = folder.mlflow_run_id.read_text(encoding="utf-8").strip()
        try:
            before = self._client.get_run(run_id).data.tags.get(FOLDER)
            if before and _is_copy(folder, Path(before), run_id):
                log.warning("MLflow's run %s is that of %s; the copy starts a new one", run_id, before)
                return None
            self._client.update_run(run_id, status="RUNNING", name=cfg.experiment.name)
            self._client.set_tag(run_id, FOLDER, str(folder.path.absolute()))
            return self._client.get_run(run_id)
        except MlflowException:
            log.warning("MLflow has no run %s here; the continued run starts a new one", run_id)
            return None

    def _send(self) -> None:
        self._sent_s = time.perf_counter()
        try:
            while self._pending:
                self._client.log_batch(self._run_id, metrics=self._pending[:MAX_METRICS_PER_REQUEST])
                del self._pending[:MAX_METRICS_PER_REQUEST]
        except MlflowException as error:
            log.warning(
                "MLflow did not take the metrics (%s); they are kept for the next batch", _reason(error)
            )


def _reason(error: Exception) -> str:
    """What a library says, on one short line without secrets and without the SQL that failed."""
    return textwrap.shorten(masked(str(error).partition("[SQL:")[0]), MAX_REASON)


@contextmanager
def open_store(cfg: ExperimentConfig, folder: RunFolder) -> Iterator[MlflowClient]:
    """The MLflow store of a run: tracking and registry; nobody else of ours opens it meanwhile.

    Raises:
        ConfigError: it cannot be opened, or does not do what it was asked for.
    """
    # Table creation and upgrades are of no interest here.
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    store = find_store(cfg, folder)
    try:
        with _alone(store):
            if store.source == DEFAULT and store.file:
                _move_artifacts(store.file)
            _make_tables(store, _artifacts(store, folder))
            yield MlflowClient(tracking_uri=store.uri, registry_uri=store.uri)
    except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError) as error:
        problem = f"cannot be opened ({_reason(error)})"
        fix = "check the address and its disk, or set tracking.backend to none"
        if store.source == VARIABLE:
            raise ConfigError("", VARIABLE, store.shown, problem=problem, fix=fix) from None
        file = str(folder.config)
        raise RunSettingError(file, "tracking.uri", store.shown, problem=problem, fix=fix) from None


def has_store(cfg: ExperimentConfig, folder: RunFolder) -> bool:
    """Whether there may be something to read: `open_store` would make an SQLite file that is not there."""
    path = find_store(cfg, folder).file
    return path is None or path.exists() or not path.parent.is_dir()


def new_run(client: MlflowClient, cfg: ExperimentConfig, folder: RunFolder) -> Run:
    """A new MLflow run of the experiment that `cfg` describes."""
    git = git_state()
    tags = {"mlflow.source.git.commit": git.commit, "git.dirty": str(git.dirty)} if git else {}
    tags[FOLDER] = str(folder.path.absolute())
    experiment = _experiment_id(client, _artifacts(find_store(cfg, folder), folder))
    return client.create_run(experiment, run_name=cfg.experiment.name, tags=tags)


def _artifacts(store: Store, folder: RunFolder) -> str | None:
    """Where files go: beside our own store, else where MLflow puts them; None leaves it to a server."""
    if store.source == DEFAULT:
        return (_output_dir(folder) / "mlartifacts").as_uri()
    return (Path.cwd() / "mlruns").as_uri() if store.file else None


def _make_tables(store: Store, artifacts: str | None) -> None:
    """Fill a new SQLite file, which MLflow cannot do in a working directory with quotes in its path."""
    if store.file and artifacts and not store.file.stat().st_size:
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        SqlAlchemyStore(store.uri, artifacts)


def _experiment_id(client: MlflowClient, artifacts: str | None) -> str:
    """The id of our MLflow experiment, made at first use; `artifacts` is where its files go."""
    if found := client.get_experiment_by_name(EXPERIMENT):
        return str(found.experiment_id)
    try:
        return client.create_experiment(EXPERIMENT, artifacts)
    except MlflowException:
        # A run that started at the same moment may have made it first.
        found = client.get_experiment_by_name(EXPERIMENT)
        if found is None:
            raise
        return str(found.experiment_id)


@dataclass(frozen=True)
class Store:
    """Where MLflow keeps things, and who said so."""

    uri: str
    source: str

    @property
    def file(self) -> Path | None:
        """The SQLite file; None where it is another store."""
        if not self.uri.startswith(SQLITE):
            return None
        path = unquote(self.uri.removeprefix(SQLITE).partition("?")[0])
        return None if path in ("", ":memory:") else Path(path)

    @property
    def shown(self) -> str:
        """The address to print: a file as a path, without the password of a server."""
        return str(self.file or re.sub(r"//[^/@]*@", "//", self.uri))

    def __str__(self) -> str:
        return f"{self.shown} ({self.source})"


def find_store(cfg: ExperimentConfig, folder: RunFolder) -> Store:
    """The store of a run: what the setting says, else the environment, else a file beside the runs."""
    if cfg.tracking.uri:
        return Store(_quoted_path(cfg.tracking.uri), "tracking.uri")
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return Store(_quoted_path(uri), VARIABLE)
    return Store(sqlite_uri(_output_dir(folder) / "mlflow.db"), DEFAULT)


def sqlite_uri(path: Path) -> str:
    """The address of an SQLite file, whatever characters are in its path."""
    text = str(path)
    # A path in which something has to be quoted is quoted as a whole, slashes too: MLflow makes the folder of
    # the path as it stands in the address, and would make one with a quoted name.
    return SQLITE + (quote(text, safe="") if set(text) & set("%?") else text)


def _quoted_path(uri: str) -> str:
    """`uri`, with the path of an SQLite file quoted as in `sqlite_uri`."""
    path = Store(uri, "").file
    if path is None or "%" not in uri:
        return uri
    _, mark, query = uri.partition("?")
    return sqlite_uri(path) + mark + query


def _output_dir(folder: RunFolder) -> Path:
    return folder.path.parent.absolute()


def _is_copy(folder: RunFolder, before: Path, run_id: str) -> bool:
    """Whether the folder `before`, another one than `folder`, still has this MLflow run."""
    known = before / folder.mlflow_run_id.name
    if not known.is_file() or known.samefile(folder.mlflow_run_id):
        return False
    return known.read_text(encoding="utf-8").strip() == run_id


def _move_artifacts(path: Path) -> None:
    """Let our own SQLite file name the folder of artifacts beside it, also after both were moved."""
    here = (path.parent / ARTIFACTS).as_uri()
    with closing(sqlite3.connect(path)) as database, database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if "experiments" not in tables:
            return
        query = "SELECT artifact_location FROM experiments WHERE name = ?"
        for (there,) in database.execute(query, (EXPERIMENT,)).fetchall():
            if there == here or not there.endswith(f"/{ARTIFACTS}"):
                continue
            for table, column in ARTIFACT_COLUMNS:
                if table in tables and column in _columns(database, table):
                    database.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                        f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                        (here, len(there) + 1, there, len(there) + 1, f"{there}/"),
                    )


def _columns(database: sqlite3.Connection, table: str) -> set[str]:
    return {row[1] for row in database.execute(f"PRAGMA table_info({table})")}


@contextmanager
def _alone(store: Store) -> Iterator[None]:
    """Let nobody else open the same SQLite file: two runs that both make its tables would break them.

    Raises:
        sqlite3.Error, OSError: it cannot be opened, or is no database; MLflow would retry for minutes.
    """
    path = store.file
    if path is None:
        yield
        return
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA schema_version")
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
