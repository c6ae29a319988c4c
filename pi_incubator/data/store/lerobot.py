"""LeRobot's Lance layout (lerobot#4363): `meta/` as in LeRobotDataset v3.0, and the steps in `frames.lance`.

Row N of the table is step N. Names of features have `_` for every `.`, because Lance has no dots in names.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import lancedb
import pyarrow as pa

from pi_incubator.data.datasets import lerobot
from pi_incubator.data.datasets.layout import Episode, Manifest

STORAGE_FORMAT, TABLE = "lance", "frames"


def write(manifest: Manifest, episodes: Iterable[Episode], folder: Path) -> None:
    """Write episodes so that LeRobot reads them from Lance.

    Raises:
        DatasetError: `folder` is there already, a group is pixels, or there are no episodes.
        OSError: it cannot be written.
    """
    lerobot.write(manifest, episodes, folder, _write_frames, STORAGE_FORMAT)


def _write_frames(table: pa.Table, folder: Path) -> None:
    renamed = table.rename_columns([name.replace(".", "_") for name in table.column_names])
    lancedb.connect(folder).create_table(TABLE, renamed)
