"""The file in shared memory that two processes map: made by the policy's end, found by the robot's end.

Nothing is ever written into a file that this user did not make, or that has other names: what another user or
a link put in its place is refused.
"""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path

from .errors import LinkError
from .packets import OBSERVATION

MODE = 0o600
SLOT_ALIGNMENT = 64
COUNTER_BYTES = 8  # of packets; in the first slot an observation follows, or zeros


def create(path: Path, size: int) -> int:
    """Make the file at `path`, `size` zeros, and lock it; returns its descriptor.

    The file is complete when it gets its name, so that no robot finds half of one. It takes the place of the
    file that a policy left behind when it was killed.

    Raises:
        LinkError: another policy has the file, or something that is no slot file is at `path`.
    """
    descriptor = -1
    try:
        descriptor = os.open(path.parent, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, MODE)
        os.fchmod(descriptor, MODE)  # whatever the umask is
        os.posix_fallocate(descriptor, 0, size)  # an error now, not a crash at a later write
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove_left_behind(path)
        # src_dir_fd is not used with an absolute path, but makes Python follow the link in /proc to the file.
        os.link(f"/proc/self/fd/{descriptor}", path, src_dir_fd=descriptor)
    except OSError as error:
        if descriptor >= 0:
            os.close(descriptor)
        raise LinkError(f"{path}: {error.strerror}; another policy may have it: name a free one") from None
    except LinkError:
        os.close(descriptor)
        raise
    return descriptor


def open_existing(path: Path, size: int) -> int:
    """A descriptor of the file that a policy's end made at `path`.

    Raises:
        LinkError: there is none, it is not this user's own, or it has another size.
    """
    try:
        descriptor = _open_own(path, os.O_RDWR)
    except OSError as error:
        raise LinkError(f"{path}: {error.strerror}; start the policy's end first") from None
    if os.fstat(descriptor).st_size != size:
        os.close(descriptor)
        raise LinkError(f"{path}: is for a contract of other widths; start the policy's end first")
    return descriptor


def identity(status: os.stat_result) -> tuple[int, int]:
    """What tells a file from another that later gets its name."""
    return status.st_dev, status.st_ino


def identity_at(path: Path) -> tuple[int, int] | None:
    """The identity of the file at `path`; None where there is none."""
    try:
        return identity(os.lstat(path))
    except OSError:
        return None


def remove(path: Path, descriptor: int) -> None:
    """Remove the file at `path` if it is still that of the descriptor."""
    if identity_at(path) == identity(os.fstat(descriptor)):
        path.unlink(missing_ok=True)


def _remove_left_behind(path: Path) -> None:
    """Remove the file of a policy that is dead; anything else at `path` stays, and is an error."""
    try:
        descriptor = _open_own(path, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        if _holds_other_data(descriptor):
            raise LinkError(f"{path}: holds the data of another program; name a free one")
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails where its policy lives
        remove(path, descriptor)
    finally:
        os.close(descriptor)


def _open_own(path: Path, access: int) -> int:
    """A descriptor of a regular file of this user, without following a link.

    Raises:
        LinkError: something else is there.
        OSError: nothing is there, or it cannot be opened.
    """
    _check_own(path, os.lstat(path))  # before it is opened: a device or a pipe may act on that
    descriptor = os.open(path, access | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _check_own(path, os.fstat(descriptor))
    except LinkError:
        os.close(descriptor)
        raise
    return descriptor


def _check_own(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        problem = "is no regular file"
    elif status.st_uid != os.geteuid():
        problem = f"belongs to another user ({status.st_uid})"
    elif status.st_nlink > 1:
        problem = "has another name too (a hard link)"
    else:
        return
    raise LinkError(f"{path}: {problem}; remove it, or name a free one")


def _holds_other_data(descriptor: int) -> bool:
    """Whether the content cannot be the slots that a policy left behind."""
    size = os.fstat(descriptor).st_size
    kind = os.pread(descriptor, len(OBSERVATION), COUNTER_BYTES)
    return size > 0 and (size % SLOT_ALIGNMENT > 0 or kind not in (OBSERVATION, bytes(len(OBSERVATION))))
