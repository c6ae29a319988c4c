"""A new run in a folder that holds an older one: that one is moved to `<run>/previous/001`, `002`, ...

Once the new run has written its first checkpoint, they are deleted, but for the newest that has a checkpoint
or results.

A folder that is a link, such as `checkpoints` on another disk, stays one: what it holds is moved to a folder
`previous_001` on that disk, to which the older run then has a link.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from pi_incubator.run_paths import RunFolder

PARTIAL = ".partial"
"""Ends the name of a folder below `previous` into which, or out of which, a run is just being moved."""
ON_OTHER_DISK = "previous_"
"""Begins the name of a folder that holds what was behind a link."""


def set_aside(folder: RunFolder) -> Path | None:
    """Move all that a run left in `folder` to a new folder below `previous`.

    Returns:
        Where it is now; None where there was nothing.

    Raises:
        OSError: something cannot be moved; `recover` puts back what has been.
    """
    owned = [path for path in folder.owned if _holds_something(path)]
    if not owned:
        return None
    number = 1 + max((int(run.name) for run in _runs(folder)), default=0)
    aside = folder.previous / f"{number:03d}"
    partial = aside.with_name(f"{aside.name}{PARTIAL}")
    partial.mkdir(parents=True)
    for path in owned:
        _move_out(path, partial / path.name, f"{ON_OTHER_DISK}{aside.name}")
    return partial.rename(aside)


def put_back(folder: RunFolder, aside: Path | None) -> None:
    """Undo a start that failed: delete what it wrote into `folder`, and put back what `set_aside` moved."""
    for path in folder.owned:
        _delete_contents(path)
    if aside is not None:
        _move_back(folder, aside.rename(aside.with_name(f"{aside.name}{PARTIAL}")))


def recover(folder: RunFolder) -> None:
    """Put back a run that was just being moved when the process ended."""
    for partial in folder.previous.glob(f"*{PARTIAL}"):
        _move_back(folder, partial)


def forget_previous(folder: RunFolder) -> None:
    """Delete the older runs but the newest that has a checkpoint or results; there is a newer run now."""
    runs = _runs(folder)
    kept = next((run for run in reversed(runs) if _is_worth_keeping(RunFolder(run))), None)
    for run in runs:
        if run != kept:
            _delete(run)
    if runs and kept is None:
        _remove_if_empty(folder.previous)


def _runs(folder: RunFolder) -> list[Path]:
    """The older runs, oldest first."""
    if not folder.previous.is_dir():
        return []
    return sorted((path for path in folder.previous.iterdir() if path.name.isdecimal()), key=_number)


def _number(path: Path) -> int:
    return int(path.name)


def _is_worth_keeping(folder: RunFolder) -> bool:
    results = (folder.onnx, folder.evaluation, folder.exports)
    has_checkpoint = folder.checkpoints.is_dir() and bool(folder.saved())
    return has_checkpoint or any(path.exists() for path in results)


def _contents(path: Path) -> list[Path]:
    """What lies in the folder `path`, or behind the link, without what was moved aside there."""
    children = path.resolve().iterdir() if path.is_symlink() else path.iterdir()
    return [child for child in children if not child.name.startswith(ON_OTHER_DISK)]


def _holds_something(path: Path) -> bool:
    return bool(_contents(path)) if path.is_dir() else path.exists()


def _move_out(path: Path, to: Path, name_on_other_disk: str) -> None:
    if not (path.is_symlink() and path.is_dir()):
        path.rename(to)
        return
    there = path.resolve() / name_on_other_disk
    there.mkdir(exist_ok=True)
    to.symlink_to(there, target_is_directory=True)  # first, so that an interrupted move can be undone
    for child in _contents(path):
        child.rename(there / child.name)


def _move_back(folder: RunFolder, partial: Path) -> None:
    for path in partial.iterdir():
        to = folder.path / path.name
        if not _is_on_other_disk(path):
            if to.is_dir() and not _holds_something(to):
                to.rmdir()
            path.rename(to)
            continue
        there = path.resolve()
        for child in there.iterdir():
            child.rename(to.resolve() / child.name)
        path.unlink()
        there.rmdir()
    partial.rmdir()
    _remove_if_empty(folder.previous)


def _is_on_other_disk(path: Path) -> bool:
    """Whether `path` is a link that `_move_out` made."""
    return path.is_symlink() and path.resolve().name.startswith(ON_OTHER_DISK) and path.is_dir()


def _delete(run: Path) -> None:
    """Delete an older run, and what it holds on another disk."""
    for path in run.iterdir():
        if _is_on_other_disk(path):
            shutil.rmtree(path.resolve())
    shutil.rmtree(run)  # removes links, and does not follow them


def _delete_contents(path: Path) -> None:
    if path.is_symlink() and path.is_dir():
        for child in _contents(path):
            shutil.rmtree(child) if child.is_dir() and not child.is_symlink() else child.unlink()
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _remove_if_empty(path: Path) -> None:
    if path.is_dir() and not any(path.iterdir()):
        path.rmdir()
