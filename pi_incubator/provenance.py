"""What a result came from: the commit, the settings and the versions of the libraries."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pi_incubator.masking import stored

if TYPE_CHECKING:
    from pi_incubator.config import ExperimentConfig

GIT_TIMEOUT_S = 10.0


class GitState(NamedTuple):
    """The checkout that the running source came from."""

    commit: str
    """Hash of the checked-out commit, 40 hex digits."""
    dirty: bool
    """Whether tracked files differ from that commit."""


@cache
def git_state() -> GitState | None:
    """The state of our source tree when first asked; None outside a checkout or without git."""
    here = Path(__file__)
    # An installed copy can lie inside somebody else's checkout: there git does not track this file.
    if _git("ls-files", "--error-unmatch", here.name, cwd=here.parent) is None:
        return None
    commit = _git("rev-parse", "HEAD", cwd=here.parent)
    status = _git("status", "--porcelain", "--untracked-files=no", cwd=here.parent)
    return GitState(commit, dirty=bool(status)) if commit else None


def library_versions(names: Iterable[str]) -> dict[str, str | None]:
    """The installed version of each distribution; None where it is not installed."""
    return {name: _version(name) for name in names}


def flatten(cfg: ExperimentConfig) -> dict[str, Any]:
    """Every value of `cfg` by `section.key`, as JSON types, without credentials."""
    sections = cfg.model_dump(mode="json")
    return {
        f"{section}.{key}": stored(value) for section, keys in sections.items() for key, value in keys.items()
    }


def config_hash(cfg: ExperimentConfig) -> str:
    """SHA-256 over every value of `cfg`, 64 hex digits."""
    return hashlib.sha256(json.dumps(flatten(cfg), sort_keys=True).encode()).hexdigest()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str, cwd: Path) -> str | None:
    command = ["git", "-C", str(cwd), *arguments]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=GIT_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
