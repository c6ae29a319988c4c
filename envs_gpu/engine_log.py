"""What MuJoCo warns of: one line for each kind of warning and how often it came, and its log file's place.

By itself MuJoCo prints every warning, and appends it to `MUJOCO_LOG.TXT` in the working directory.
"""

from __future__ import annotations

import logging
import re
import threading
from datetime import datetime
from pathlib import Path
from types import TracebackType

import mujoco

FILE = "MUJOCO_LOG.TXT"
"""As MuJoCo calls it."""
log = logging.getLogger(__name__)
_LONGEST_PATH = 1000
"""Bytes; MuJoCo keeps the path of its log in 1,024."""
_NUMBER = re.compile(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?", re.IGNORECASE)


class EngineLog:
    """While it is entered, MuJoCo's warnings come here, also from the threads that step worlds.

    The first warning of a kind is logged at once, and how many there were is logged at the end. Two warnings
    are of one kind if they differ in numbers alone. What was set before is set again at the end.

    Args:
        folder: where `MUJOCO_LOG.TXT` goes, once there is something to write; None writes none.
    """

    def __init__(self, folder: Path | None) -> None:
        path = None if folder is None else folder.absolute() / FILE
        self.path = path if path and len(str(path).encode()) < _LONGEST_PATH else None
        self.counts: dict[str, int] = {}
        """Kind of warning, with `#` for numbers -> how many came."""
        self._lock = threading.Lock()

    def __enter__(self) -> EngineLog:
        self._before = mujoco.MjLogConfig.get(), mujoco.get_mju_user_warning()
        config = mujoco.MjLogConfig.get()
        config.logto_file = self.path is not None
        config.logfile = str(self.path or FILE)
        config.set()
        mujoco.set_mju_user_warning(self.hear)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        config, callback = self._before
        mujoco.set_mju_user_warning(callback)
        config.set()
        for warning, count in self.counts.items():
            if count > 1:
                text = f"{count:,} times in all: {warning}"
                log.warning("MuJoCo warned %s", text)
                self._write(text)

    def hear(self, text: str) -> None:
        """Take one warning; called by MuJoCo, from any thread."""
        text = " ".join(text.split())
        warning = _NUMBER.sub("#", text)
        with self._lock:
            self.counts[warning] = count = self.counts.get(warning, 0) + 1
        if count == 1:
            log.warning("MuJoCo: %s (more of this kind are counted)", text)
            self._write(text)

    def _write(self, text: str) -> None:
        """Append a line as MuJoCo writes it; a disk that is full must not stop the physics."""
        if self.path is None:
            return
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"WARNING {datetime.now():%a %b %d %H:%M:%S %Y}: {text}\n")
        except OSError as error:
            log.warning("%s: cannot be written (%s)", self.path, error.strerror)


class Unheard:
    """While it is entered, nobody hears MuJoCo's warnings: of trials that are expected to blow up."""

    def __enter__(self) -> None:
        self._before = mujoco.MjLogConfig.get(), mujoco.get_mju_user_warning()
        config = mujoco.MjLogConfig.get()
        config.logto_file = False
        config.set()
        mujoco.set_mju_user_warning(lambda text: None)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        config, callback = self._before
        mujoco.set_mju_user_warning(callback)
        config.set()
