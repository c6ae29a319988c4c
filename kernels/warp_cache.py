"""Where Warp keeps compiled kernels: in its own cache, or in a temporary folder if that cannot be written."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

import warp as wp

NEEDED_BYTES = 1 << 20
"""A compiled kernel takes some 100 kB."""

logger = logging.getLogger(__name__)


@cache
def has_cache() -> bool:
    """Whether Warp has a folder to compile into, which this chooses; call it before Warp is initialized."""
    if wp.config.kernel_cache_dir is not None or can_write(_usual_folder(), NEEDED_BYTES):
        return True
    try:
        folder = Path(tempfile.mkdtemp(prefix="warp_cache_"))
    except OSError:
        return False
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    if not can_write(folder, NEEDED_BYTES):
        return False
    logger.warning("kernels are compiled anew, because Warp's cache %s cannot be written", _usual_folder())
    wp.config.kernel_cache_dir = str(folder)
    return True


def can_write(folder: Path, num_bytes: int) -> bool:
    """Whether `folder`, made if need be, takes a file of `num_bytes`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(num_bytes))
            file.flush()
    except OSError:
        return False
    return True


def _usual_folder() -> Path:
    """Where Warp would go, or above it."""
    if named := os.environ.get("WARP_CACHE_PATH"):
        return Path(named)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "warp"
    except RuntimeError:  # there is no home
        return Path("/nonexistent/warp")
