"""Robots come from the folder beside the checkout where there is one, so that tests need no download."""

import os
from pathlib import Path

SHARED_ROBOTS = Path(__file__).parent.parent.parent / "shared" / "robots"

if SHARED_ROBOTS.is_dir():
    os.environ.setdefault("MENAGERIE_ROOT", str(SHARED_ROBOTS))
