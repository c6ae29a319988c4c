"""A bundle: the folder, or the .tar.gz of one, that a robot is given; checked, and read into memory.

Nothing is ever extracted to disk or unpickled.
"""

from __future__ import annotations

import hashlib
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ._archive import COPY_AGAIN, read_members
from ._onnx_file import summarize
from .contract import MAX_TEXT_BYTES, Contract, parse_contract, parse_json
from .errors import RuntimeBundleError

CONTRACT, SUMS, FAILED_GATES, ENGINES = "contract.json", "SHA256SUMS", "FAILED_GATES", "engines"
MAX_BUNDLE_BYTES = 2**30  # uncompressed; what is larger is no policy for a robot
# Operator sets of onnxruntime itself that its quantizer and its graph optimizer write.
KNOWN_DOMAINS = ("", "ai.onnx", "com.microsoft")
EXPORT_AGAIN = "export the policy again"
SUMS_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")


@dataclass(frozen=True)
class Bundle:
    """A bundle whose hashes match.

    Args:
        path: where it was read from.
        contract: what the policy promises.
        onnx: bytes of the network's file.
        engines: name -> bytes of the TensorRT engines in it.
        failed_gates: whether it is marked as one that failed a gate.
    """

    path: Path
    contract: Contract
    onnx: bytes
    engines: Mapping[str, bytes]
    failed_gates: bool


def read_bundle(path: Path | str) -> Bundle:
    """Read the bundle at `path`, a folder or a .tar.gz, and check every hash in it.

    Raises:
        RuntimeBundleError: something is missing, cut short or changed, points out of the bundle, is of a
            newer version, or the network's file is not what the contract says.
    """
    path = Path(path)
    files = _read_folder(path) if path.is_dir() else _read_archive(path)
    _check_sums(files, path)
    contract = parse_contract(_file(files, CONTRACT, path), f"{path}/{CONTRACT}")
    onnx = _file(files, contract.onnx.file, path)
    _check_onnx(onnx, contract, f"{path}/{contract.onnx.file}")
    engines = {PurePosixPath(name).name: data for name, data in files.items() if _is_engine(name)}
    return Bundle(path, contract, onnx, engines, FAILED_GATES in files)


def _read_folder(path: Path) -> dict[str, bytes]:
    """Relative name -> bytes of the files that `SHA256SUMS` lists, the marks and the engines."""
    files: dict[str, bytes] = {}
    num_bytes = 0
    try:
        sums = _read_inside(path, SUMS, MAX_TEXT_BYTES)
        names = set(_parse_sums(sums, path))
        names |= {f"{ENGINES}/{engine.name}" for engine in (path / ENGINES).glob("*.plan")}
        if (path / FAILED_GATES).exists():
            names.add(FAILED_GATES)
        for name in sorted(names):
            files[name] = _read_inside(path, name, MAX_BUNDLE_BYTES - num_bytes)
            num_bytes += len(files[name])
    except OSError as error:
        raise RuntimeBundleError(
            f"{error.filename}: cannot be read ({error.strerror}); {COPY_AGAIN}"
        ) from None
    except RuntimeError as error:  # Python 3.10 to 3.12, of links in a circle
        raise RuntimeBundleError(f"{path}: cannot be read ({error}); {COPY_AGAIN}") from None
    return files | {SUMS: sums}


def _read_inside(path: Path, name: str, max_bytes: int) -> bytes:
    """A regular file in the folder `path`, of at most `max_bytes`.

    Raises:
        RuntimeBundleError: it points out of the folder, is something else, or larger.
        OSError: it is missing or cannot be read.
    """
    file = (path / name).resolve()
    if not file.is_relative_to(path.resolve()):
        raise RuntimeBundleError(f"{path}/{name}: points out of the bundle; {COPY_AGAIN}")
    status = (path / name).stat()
    if not stat.S_ISREG(status.st_mode):
        raise RuntimeBundleError(f"{path}/{name}: is no regular file; {COPY_AGAIN}")
    if status.st_size > max_bytes:
        problem = f"has {status.st_size} bytes, and only {max_bytes} more may be read"
        raise RuntimeBundleError(f"{path}/{name}: {problem}; {COPY_AGAIN}")
    return (path / name).read_bytes()


def _read_archive(path: Path) -> dict[str, bytes]:
    """Name relative to the archive's one top folder -> bytes."""
    files: dict[str, bytes] = {}
    tops = set()
    for member in read_members(path, MAX_BUNDLE_BYTES):
        parts = _safe_name(member.name, path).parts
        if not member.is_folder:
            tops.add(parts[0])
            files["/".join(parts[1:])] = member.content
    if len(tops) != 1 or "" in files:
        raise RuntimeBundleError(f"{path}: does not hold one folder; {COPY_AGAIN}")
    return files


def _safe_name(name: str, path: Path) -> PurePosixPath:
    """`name` as a path that stays inside the bundle."""
    parts = PurePosixPath(name)
    if (
        parts.is_absolute()
        or ".." in parts.parts
        or not parts.parts
        or "\\" in name
        or not name.isprintable()
    ):
        raise RuntimeBundleError(f"{path}: {name!r} points out of the bundle; {COPY_AGAIN}")
    return parts


def _parse_sums(sums: bytes, path: Path) -> dict[str, str]:
    """Name -> SHA-256 from the lines of `sha256sum`."""
    listed = {}
    if len(sums) > MAX_TEXT_BYTES:
        raise RuntimeBundleError(f"{path}/{SUMS}: is larger than {MAX_TEXT_BYTES} bytes; {COPY_AGAIN}")
    # Not splitlines(), for which a damaged line break may be another one.
    for line in sums.decode(errors="replace").removesuffix("\n").split("\n"):
        match = SUMS_LINE.fullmatch(line)
        if not match:
            raise RuntimeBundleError(f"{path}/{SUMS}: {line[:60]!r} is no line of sha256sum; {COPY_AGAIN}")
        listed[str(_safe_name(match[2].removeprefix("./"), path))] = match[1]
    return listed


def _check_sums(files: Mapping[str, bytes], path: Path) -> None:
    """Every listed file is there and unchanged, and what the runtime relies on is listed."""
    listed = _parse_sums(_file(files, SUMS, path), path)
    for name, sha256 in listed.items():
        found = hashlib.sha256(_file(files, name, path)).hexdigest()
        if found != sha256:
            raise RuntimeBundleError(
                f"{path}/{name}: SHA-256 {found[:12]}... is not the {sha256[:12]}... of {SUMS}; {COPY_AGAIN}"
            )
    if CONTRACT not in listed:
        raise RuntimeBundleError(f"{path}/{SUMS}: does not list {CONTRACT}; {COPY_AGAIN}")


def _check_onnx(onnx: bytes, contract: Contract, where: str) -> None:
    """The network's file is the contract's, stands alone, and was written for operators that are known."""
    sha256 = hashlib.sha256(onnx).hexdigest()
    if sha256 != contract.onnx.sha256:
        found, expected = sha256[:12], contract.onnx.sha256[:12]
        raise RuntimeBundleError(
            f"{where}: SHA-256 {found}... is not the contract's {expected}...; {COPY_AGAIN}"
        )
    summary = summarize(onnx, where)
    if summary.has_external_data:
        raise RuntimeBundleError(
            f"{where}: its weights lie in another file; export it with external_data=False"
        )
    if summary.has_loops:
        raise RuntimeBundleError(f"{where}: has a loop, which may never end; {EXPORT_AGAIN}")
    for domain, version in summary.opsets.items():
        if domain not in KNOWN_DOMAINS:
            raise RuntimeBundleError(f"{where}: operator set {domain!r} is unknown; export with ONNX's own")
        if domain != "com.microsoft" and version != contract.onnx.opset:
            raise RuntimeBundleError(
                f"{where}: operator set {version} is not the contract's {contract.onnx.opset}; {EXPORT_AGAIN}"
            )
    embedded = summary.metadata.get("contract")
    if embedded is not None and not _agree(embedded, contract):
        raise RuntimeBundleError(f"{where}: the contract inside is not that of {CONTRACT}; {COPY_AGAIN}")


def _agree(embedded: str, contract: Contract) -> bool:
    """Whether the contract in the ONNX metadata is `contract`, but for what the file cannot know."""
    try:
        inside = parse_json(embedded)
    except ValueError:
        return False
    return inside == {key: value for key, value in contract.raw.items() if key not in ("onnx", "gates")}


def _is_engine(name: str) -> bool:
    return name.startswith(f"{ENGINES}/") and name.endswith(".plan")


def _file(files: Mapping[str, bytes], name: str, path: Path) -> bytes:
    if name not in files:
        raise RuntimeBundleError(f"{path}/{name}: file not found; {COPY_AGAIN}")
    return files[name]
