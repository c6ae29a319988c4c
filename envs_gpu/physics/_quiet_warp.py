"""Imported for its effect, before anything that initializes Warp: it would report every kernel it builds."""

from __future__ import annotations

import contextlib

with contextlib.suppress(ImportError):
    import warp

    warp.config.log_level = warp.LOG_ERROR
