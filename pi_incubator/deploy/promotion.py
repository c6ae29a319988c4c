"""Bundles in MLflow's model registry: which ones passed, which one robots run, and the way back.

A version of the registered model, which is called like the experiment, is one bundle: the files as they
are, hashes and all. `candidate` and `champion` are its aliases. Nothing is ever unpickled: MLflow only
stores files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from pi_incubator.config import ExperimentConfig
from pi_incubator.deploy.bundle import SUMS
from pi_incubator.errors import UserError
from pi_incubator.registry import gates
from pi_incubator.run_folder import RunFolder
from pi_incubator.runtime import Bundle
from pi_incubator.tracking.mlflow import has_store, new_run, open_store

ALIASES = CANDIDATE, CHAMPION = ("candidate", "champion")
HISTORY = "champion_history"
"""Tag of the registered model: the versions that were champion, oldest first, as a JSON list."""
BUNDLE_HASH = "bundle_sha256"


def registered_name(cfg: ExperimentConfig) -> str:
    """The name of the registered model: the experiment's, without characters that MLflow does not take."""
    return "".join(f"%{ord(c):02X}" if c in "%/:'\"`\\" else c for c in cfg.experiment.name)


def promote(bundle: Bundle, cfg: ExperimentConfig, folder: RunFolder, alias: str) -> int:
    """Give `bundle` an alias in the registry; registers it if it is not there yet.

    Args:
        bundle: read, so its hashes match.
        cfg: of the run that it comes from; says where the registry is.
        folder: the run's.
        alias: one of `ALIASES`.

    Returns:
        The version that it has.

    Raises:
        UserError: a gate failed or has not run.
        ConfigError: the store cannot be opened.
    """
    check_gates(bundle)
    name = registered_name(cfg)
    with open_store(cfg, folder) as client:
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        identity = _identity(bundle.path)
        same = (v for v in _versions(client, name) if v.tags.get(BUNDLE_HASH) == identity)
        version = next(same, None) or _register(client, bundle, identity, cfg, folder)
        if alias == CHAMPION:
            _remember(client, name, int(version.version))
        client.set_registered_model_alias(name, alias, version.version)
    return int(version.version)


def rollback(cfg: ExperimentConfig, folder: RunFolder) -> int:
    """Make the champion before the present one champion again; gives its version.

    Raises:
        UserError: there was none.
        ConfigError: the store cannot be opened.
    """
    name = registered_name(cfg)
    none = UserError(f"{name}: there is no champion before this one; promote another bundle instead")
    if not has_store(cfg, folder):
        raise none
    with open_store(cfg, folder) as client:
        history = _history(client, name)
        if len(history) < 2:
            raise none
        client.set_registered_model_alias(name, CHAMPION, str(history[-2]))
        client.set_registered_model_tag(name, HISTORY, json.dumps(history[:-1]))
    return history[-2]


def versions(cfg: ExperimentConfig, folder: RunFolder) -> dict[str, dict[str, Any]]:
    """What is registered, newest first: version -> aliases, when, and where it comes from.

    Raises:
        ConfigError: the store cannot be opened.
    """
    if not has_store(cfg, folder):
        return {}
    with open_store(cfg, folder) as client:
        return {str(found.version): _row(client, found) for found in _versions(client, registered_name(cfg))}


def check_gates(bundle: Bundle) -> None:
    """Refuse a bundle that has not passed every gate there is.

    Raises:
        UserError: a gate failed, or has not run.
    """
    found = bundle.contract.raw.get("gates") or {}
    missing = [name for name in gates.names() if name not in found]
    failed = [name for name, entry in found.items() if entry.get("passed") is not True]
    if failed or bundle.failed_gates:
        names = ", ".join(failed) or "see FAILED_GATES"
        raise UserError(f"{bundle.path}: gates failed ({names}); only a bundle that passed is promoted")
    if missing:
        fix = f"run them with pi-eval --gates {bundle.path}"
        raise UserError(f"{bundle.path}: gates have not run ({', '.join(missing)}); {fix}")


def _register(
    client: MlflowClient, bundle: Bundle, identity: str, cfg: ExperimentConfig, folder: RunFolder
) -> ModelVersion:
    """Upload the bundle to the run's artifacts and make a version of it."""
    run_id = _run_id(client, cfg, folder)
    place = f"bundles/{identity[:12]}"
    if bundle.path.is_dir():
        client.log_artifacts(run_id, str(bundle.path), place)
    else:
        client.log_artifact(run_id, str(bundle.path), place)
    source = f"runs:/{run_id}/{place}"
    tags = dict(_tags(bundle)) | {BUNDLE_HASH: identity}
    return client.create_model_version(registered_name(cfg), source, run_id, tags=tags)


def _tags(bundle: Bundle) -> Iterator[tuple[str, str]]:
    """Lineage, and how well it did."""
    contract = bundle.contract.raw
    for key in ("git_commit", "git_dirty", "config_sha256", "normalizer_sha256", "task", "precision"):
        yield key, str(contract.get(key))
    yield "training_return", str(contract.get("training_return"))
    yield "onnx_sha256", bundle.contract.onnx.sha256
    for name, entry in contract["gates"].items():
        yield f"gate.{name}", str(entry["value"])


def _run_id(client: MlflowClient, cfg: ExperimentConfig, folder: RunFolder) -> str:
    """The MLflow run of the training; a new one of its name where the training was not tracked here."""
    if folder.mlflow_run_id.is_file():
        run_id = folder.mlflow_run_id.read_text(encoding="utf-8").strip()
        try:
            return str(client.get_run(run_id).info.run_id)
        except MlflowException:
            pass  # tracked in another store
    run_id = str(new_run(client, cfg, folder).info.run_id)
    client.set_terminated(run_id)
    folder.mlflow_run_id.write_text(run_id, encoding="utf-8")
    return run_id


def _identity(path: Path) -> str:
    """The same for the same bundle in the same form."""
    return hashlib.sha256((path / SUMS if path.is_dir() else path).read_bytes()).hexdigest()


def _versions(client: MlflowClient, name: str) -> list[ModelVersion]:
    found = client.search_model_versions(f"name = '{name}'")
    return sorted(found, key=lambda version: -int(version.version))


def _history(client: MlflowClient, name: str) -> list[int]:
    """The champions so far, the present one last, also where somebody named it by hand."""
    models = client.search_registered_models(f"name = '{name}'")
    if not models:
        return []
    history: list[int] = json.loads(models[0].tags.get(HISTORY, "[]"))
    champion = models[0].aliases.get(CHAMPION)
    return history if champion is None or history[-1:] == [int(champion)] else [*history, int(champion)]


def _remember(client: MlflowClient, name: str, version: int) -> None:
    history = _history(client, name)
    if history[-1:] != [version]:
        client.set_registered_model_tag(name, HISTORY, json.dumps([*history, version]))


def _row(client: MlflowClient, version: ModelVersion) -> dict[str, Any]:
    # A search leaves the aliases out.
    aliases = client.get_model_version(version.name, version.version).aliases
    tags, created = version.tags, datetime.fromtimestamp(version.creation_timestamp / 1e3, UTC)
    return {
        "aliases": ", ".join(sorted(aliases)),
        "created_utc": f"{created:%Y-%m-%d %H:%M}",
        "precision": tags.get("precision"),
        "sim_to_sim": float(share) if (share := tags.get("gate.sim_to_sim")) else None,
        "run": (version.run_id or "")[:8],
        "git_commit": (tags.get("git_commit") or "")[:8],
        "config": (tags.get("config_sha256") or "")[:8],
    }
