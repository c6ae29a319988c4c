"""A bundle: the files of one exported policy, in a folder or a tar.gz, and the SHA-256 of each.

The same files make the same bytes: names are sorted, and nothing tells when or by whom they were written.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path

from pi_incubator.errors import UserError
from pi_incubator.runtime.bundle import ENGINES, FAILED_GATES

ONNX, CONTRACT, SUMS = "policy.onnx", "contract.json", "SHA256SUMS"
BUILD_ENGINE = "build_engine.py"
Files = Mapping[str, bytes]


def with_sums(files: Files) -> dict[str, bytes]:
    """`files` and `SHA256SUMS` over them, which `sha256sum -c` checks."""
    listed = {name: content for name, content in sorted(files.items()) if name != SUMS}
    lines = [f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in listed.items()]
    return listed | {SUMS: "".join(lines).encode()}


def write_folder(files: Files, folder: Path) -> Path:
    """Write a bundle as `folder`, in the place of a bundle that is there, whose engines go with it.

    Raises:
        UserError: it cannot be written, or holds something else.
    """
    if folder.exists() and (others := _others(folder)):
        raise UserError(f"{folder}: holds {others[0]}, which is of no bundle; name another folder")
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        for name, content in with_sums(files).items():
            path = partial / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            path.chmod(0o755 if name == BUILD_ENGINE else 0o644)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); name another folder") from None
    return folder


def write_archive(files: Files, path: Path, top: str) -> Path:
    """Write a bundle as the tar.gz `path` with one folder `top` in it; the same files give the same bytes.

    Raises:
        UserError: it cannot be written.
    """
    return write_file(path, archive_bytes(with_sums(files), top))


def write_file(path: Path, content: bytes) -> Path:
    """Write one file, and the folder that it is in.

    Raises:
        UserError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); name another folder") from None
    return path


def archive_bytes(files: Files, top: str) -> bytes:
    """A tar.gz of `files` below the folder `top`, without times, owners or the order of a disk."""
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(filename="", fileobj=buffer, mode="wb", mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for name, content in sorted(files.items()):
            entry = tarfile.TarInfo(f"{top}/{name}")
            entry.size, entry.mode = len(content), 0o755 if name == BUILD_ENGINE else 0o644
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _others(folder: Path) -> list[str]:
    """What is in `folder`, or is it, and belongs to no bundle there."""
    if not folder.is_dir():
        return ["a file"]
    known = {SUMS, FAILED_GATES}
    if is_bundle(folder):
        known |= {line[66:] for line in (folder / SUMS).read_text(encoding="utf-8").splitlines()}
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(str(path) for path in paths if path.as_posix() not in known and path.parts[0] != ENGINES)


def is_bundle(path: Path) -> bool:
    """Whether `path` is a folder that holds a bundle."""
    return all((path / name).is_file() for name in (CONTRACT, SUMS))
