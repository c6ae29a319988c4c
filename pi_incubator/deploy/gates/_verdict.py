"""All gates of a bundle, and what they found out written into it."""

from __future__ import annotations

import json
import math
import os
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from pi_incubator.deploy.bundle import CONTRACT, SUMS, Files, archive_bytes, with_sums
from pi_incubator.deploy.contract import to_json
from pi_incubator.deploy.gates._base import Candidate, Result
from pi_incubator.errors import UserError
from pi_incubator.registry import gates
from pi_incubator.runtime import read_bundle
from pi_incubator.runtime.bundle import FAILED_GATES

Results = Mapping[str, Result]


def judge(candidate: Candidate, names: Iterable[str] | None = None) -> Results:
    """Run the gates called `names`, all of them by default; gives name -> what it found out.

    A gate that could not be run to its end is not passed; its detail `error` says why.
    """
    return {name: _ask(name, candidate) for name in (gates.names() if names is None else names)}


def _ask(name: str, candidate: Candidate) -> Result:
    try:
        return gates.get(name)(candidate)
    except Exception as error:
        # Whatever it was: an older verdict must not stand.
        reason = f"{type(error).__name__}: {error}"
        return Result(False, math.nan, math.nan, "not run to its end", {"error": reason})


def mark(path: Path, results: Results) -> None:
    """Write `results` into the bundle at `path`, a folder or a tar.gz, and mark it if one failed.

    The contract's `gates`, the gates' pictures and `SHA256SUMS` change, nothing else does.

    Raises:
        RuntimeBundleError: the bundle is damaged.
        UserError: it cannot be written.
    """
    read_bundle(path)  # nothing that does not match its hashes is signed anew, and no name leaves the bundle
    top, old = _read_archive(path) if path.is_file() else (None, _read_folder(path))
    contract = json.loads(old[CONTRACT])
    contract["gates"] = {name: result.entry() for name, result in results.items()}
    files = {name: content for name, content in old.items() if name != FAILED_GATES}
    for result in results.values():
        files |= result.files
    files[CONTRACT] = to_json(contract).encode()
    if failed := [name for name, result in results.items() if not result.passed]:
        files[FAILED_GATES] = "".join(f"{name}\n" for name in failed).encode()
    files = with_sums(files)
    try:
        if top is not None:
            _replace(path, archive_bytes(files, top))
            return
        if not failed:
            (path / FAILED_GATES).unlink(missing_ok=True)
        for name in sorted(files, key=lambda name: name == SUMS):  # the sums last
            if files[name] != old.get(name):
                _replace(path / name, files[name])
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); check its permissions") from None


def _read_folder(path: Path) -> dict[str, bytes]:
    """What `SHA256SUMS` lists; engines that were built here are not among it, and stay as they are."""
    lines = (path / SUMS).read_text(encoding="utf-8").splitlines()
    names = [line[66:].removeprefix("./") for line in lines]
    return {name: (path / name).read_bytes() for name in (*names, SUMS)}


def _read_archive(path: Path) -> tuple[str, Files]:
    """The one top folder, and name below it -> content."""
    files: dict[str, bytes] = {}
    top = ""
    with tarfile.open(path, "r:gz") as archive:
        for member in archive:
            if content := archive.extractfile(member):
                top, _, name = member.name.removeprefix("./").partition("/")
                files[name] = content.read()
    return top, files


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)
