"""Imported for its effect, before anything that initializes Warp.

It would report every kernel it builds, and fail where its cache cannot be written.
"""

from __future__ import annotations

import contextlib

with contextlib.suppress(ImportError):
    import warp

    warp.config.log_level = warp.LOG_ERROR

    from kernels.warp_cache import has_cache

    has_cache()
