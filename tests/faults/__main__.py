"""`make faults`: break runs in every way of the catalogue, and print what happened.

python -m tests.faults            all of them
python -m tests.faults save rank  those with one of these words in their name
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.faults.catalogue import CATALOGUE, Entry
from tests.faults.lab import Lab

WORKERS = int(os.environ.get("FAULT_WORKERS", "2"))
"""Experiments at a time."""


def main(words: list[str]) -> int:
    """Run the entries that were asked for; returns the exit code."""
    entries = [entry for entry in CATALOGUE if not words or any(word in entry.fault for word in words)]
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults_") as folder, ThreadPoolExecutor(WORKERS) as workers:
        places = [Path(folder) / f"{number:03d}" for number in range(len(entries))]
        observed = list(workers.map(_observe, entries, places))
    table = Table("fault", "expected", "observed", "ok", title="Faults", title_justify="left")
    for entry, seen in zip(entries, observed, strict=True):
        table.add_row(entry.fault, entry.expected, seen, "ok" if seen == entry.expected else "NO")
    Console(width=150, markup=False, highlight=False).print(table)
    num_bad = sum(seen != entry.expected for entry, seen in zip(entries, observed, strict=True))
    print(f"{len(entries)} faults, {num_bad} not as expected, {time.monotonic() - began_s:.0f} s")
    return int(num_bad > 0)


def _observe(entry: Entry, folder: Path) -> str:
    """What happened; a failure of the experiment itself is not what was expected either."""
    folder.mkdir()
    try:
        seen = entry.experiment(Lab(folder))
    except Exception:
        seen = traceback.format_exc(limit=-1).strip().splitlines()[-1]
    print(f"{'ok' if seen == entry.expected else 'NO'}  {entry.fault}: {seen}", flush=True)
    return seen


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
