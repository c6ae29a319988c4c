"""A .tar.gz read as one stream into memory, with a bound on all that is read before it is read.

tarfile reads headers of any length and any number, and keeps them all. Here a header has at most
`MAX_HEADER_BYTES`, only a few may precede a member, and an archive may not expand much more than a network
and its texts do: memory is bounded by the size of the file, whatever its headers claim.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .errors import RuntimeBundleError

BLOCK_BYTES = tarfile.BLOCKSIZE
PIECE_BYTES = 256 * 1024  # read at once
MAX_HEADER_BYTES = 64 * 1024  # of a long name or of PAX records
MAX_HEADERS = 8  # before one member
MAX_MEMBERS = 4096
FREE_BYTES = 16 * 2**20  # that any archive may hold, however well it is compressed
MAX_EXPANSION = 20  # beyond them: bytes for each compressed byte; weights are at 1.1, texts at 5

REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE)
LONG_NAME, LONG_LINK = tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK
PAX, PAX_SOLARIS, PAX_GLOBAL = tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE
HEADERS = (LONG_NAME, LONG_LINK, PAX, PAX_SOLARIS, PAX_GLOBAL)
COPY_AGAIN = "copy or export the bundle again"


@dataclass(frozen=True)
class Member:
    """A file in an archive, or a folder (then without content)."""

    name: str
    is_folder: bool
    content: bytes


def read_members(path: Path, max_bytes: int) -> Iterator[Member]:
    """The files and folders of the .tar.gz at `path`, in order.

    Args:
        path: of the archive.
        max_bytes: that it may hold, uncompressed.

    Raises:
        RuntimeBundleError: it cannot be read, is cut short or damaged, is larger or expands more than a
            bundle does, or holds something else than files and folders.
    """
    try:
        with path.open("rb") as file:
            yield from _members(_Stream(file, path, max_bytes), path)
    except RuntimeBundleError:
        raise
    except OSError as error:
        reason = error.strerror or error
        raise RuntimeBundleError(
            f"{path}: cannot be read ({reason}); name a bundle's folder or .tar.gz"
        ) from None
    except (tarfile.TarError, EOFError, zlib.error, ValueError) as error:
        raise RuntimeBundleError(f"{path}: is cut short or no .tar.gz ({error}); {COPY_AGAIN}") from None


class _CountingReader(io.RawIOBase):
    """A file that counts the bytes read from it."""

    def __init__(self, file: io.BufferedIOBase) -> None:
        self.num_bytes = 0
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        count = self._file.readinto(buffer)
        self.num_bytes += count
        return count


class _Stream:
    """The uncompressed bytes of an archive, within the bounds."""

    def __init__(self, file: io.BufferedIOBase, path: Path, max_bytes: int) -> None:
        self._path, self._max_bytes = path, max_bytes
        self._compressed = _CountingReader(file)
        self._uncompressed = gzip.GzipFile(fileobj=self._compressed, mode="rb")
        self._num_bytes = 0

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes.

        Raises:
            RuntimeBundleError: the archive is larger or expands more than a bundle does.
            EOFError: it ends before.
        """
        if self._num_bytes + size > self._max_bytes:
            raise RuntimeBundleError(f"{self._path}: holds more than {self._max_bytes} bytes; {COPY_AGAIN}")
        pieces = []
        while size:
            piece = self._uncompressed.read(min(size, PIECE_BYTES))
            if not piece:
                raise EOFError("it ends too early")
            self._num_bytes += len(piece)
            if self._num_bytes > FREE_BYTES + MAX_EXPANSION * self._compressed.num_bytes:
                problem = f"expands to more than {MAX_EXPANSION} times its size"
                fix = "copy it again, or unpack it and name the folder if that is what you exported"
                raise RuntimeBundleError(f"{self._path}: {problem}; {fix}")
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def read_padded(self, size: int) -> bytes:
        """`size` bytes; the rest of their last block is passed over."""
        content = self.read(size)
        self.read(-size % BLOCK_BYTES)
        return content


def _members(stream: _Stream, path: Path) -> Iterator[Member]:
    for _ in range(MAX_MEMBERS):
        info = _next_header(stream, path)
        if info is None:
            return
        if info.isdir():
            yield Member(info.name, True, b"")
        elif info.type in REGULAR:
            yield Member(info.name, False, stream.read_padded(info.size))
        else:
            raise RuntimeBundleError(f"{path}: {info.name} is a link or device, or has holes; {COPY_AGAIN}")
    raise RuntimeBundleError(f"{path}: holds more than {MAX_MEMBERS} files; {COPY_AGAIN}")


def _next_header(stream: _Stream, path: Path) -> tarfile.TarInfo | None:
    """The header of the next file, with the name and size that headers before it give; None at the end."""
    changes: dict[str, str | int] = {}
    for _ in range(MAX_HEADERS + 1):
        block = stream.read(BLOCK_BYTES)
        if block == bytes(BLOCK_BYTES):
            return None
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        if info.size < 0:
            raise tarfile.ReadError(f"{info.name!r} has a size below 0")
        if info.type not in HEADERS:
            info.name = str(changes.get("name", info.name))
            info.size = int(changes.get("size", info.size))
            return info
        if info.size > MAX_HEADER_BYTES:
            problem = f"has a header of {info.size} bytes (at most {MAX_HEADER_BYTES})"
            raise RuntimeBundleError(f"{path}: {problem}; {COPY_AGAIN}")
        content = stream.read_padded(info.size)
        if info.type == LONG_NAME:
            changes["name"] = content.split(b"\0")[0].decode("utf-8", "surrogateescape")
        elif info.type in (PAX, PAX_SOLARIS):
            changes |= _pax_changes(content)
    raise RuntimeBundleError(f"{path}: has more than {MAX_HEADERS} headers before a file; {COPY_AGAIN}")


def _pax_changes(content: bytes) -> dict[str, str | int]:
    """Name and size from PAX records, each "LENGTH KEY=VALUE" and a line break (POSIX.1-2001, pax)."""
    changes: dict[str, str | int] = {}
    while content.rstrip(b"\0"):
        length_text, blank, _ = content.partition(b" ")
        if not blank or not length_text.isdigit() or len(length_text) > 6:
            raise tarfile.ReadError("a PAX record is damaged")
        length = int(length_text)
        key, equals, value = content[len(length_text) + 1 : length - 1].partition(b"=")
        if not equals or content[length - 1 : length] != b"\n":
            raise tarfile.ReadError("a PAX record is damaged")
        if key == b"path":
            changes["name"] = value.decode("utf-8", "surrogateescape")
        elif key == b"size":
            if not value.isdigit() or len(value) > 19:
                raise tarfile.ReadError("a PAX record has a wrong size")
            changes["size"] = int(value)
        elif key.startswith(b"GNU.sparse."):
            raise tarfile.ReadError("a file with holes")
        content = content[length:]
    return changes
