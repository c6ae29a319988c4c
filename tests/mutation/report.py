"""What became of the mutants."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.mutation.candidate import Candidate, Key, candidates_of

ROOT = Path(__file__).parents[2]
REASONS = Path(__file__).parent / "survivors.txt"
"""Survivors that no test should kill: `file | line | mutant | reason`; `mutant #2` is the second such."""
TARGET = 0.9


def print_report(results: Path, files: list[str]) -> int:
    """Print each file's score and the survivors without a reason; returns 1 if it is below `TARGET`.

    The score is the share that is killed or does not end. Explained survivors count as survivors. Results of
    lines that are no longer in the code do not count.
    """
    by_file: dict[str, list[dict]] = defaultdict(list)
    found = outcomes(results)
    current = {one.key for file in {key[0] for key in found} for one in _candidates(file)}
    for key, result in sorted(found.items()):
        is_asked = not files or any(result["file"].startswith(file.rstrip("/")) for file in files)
        if is_asked and key in current:
            result["explained"] = is_explained(key)
            by_file[result["file"]].append(result)
    table = Table("file", "tested", "killed", "timeouts", "survived", "explained", "score")
    total = [result for of_file in by_file.values() for result in of_file]
    for name, of_file in [*by_file.items(), ("all", total)]:
        num = Counter(result["outcome"] for result in of_file)
        explained = sum(result["explained"] for result in of_file if result["outcome"] == "survived")
        counts = (len(of_file), num["killed"], num["timeout"], num["survived"], explained)
        table.add_row(name, *map(str, counts), _percent(of_file))
    for result in total:
        if result["outcome"] == "survived" and not result["explained"]:
            mutant = numbered(result["mutant"], result["nth"])
            print(f"survived {result['file']}:{result['line']} | {result['source_line']} | {mutant}")
    Console(width=120).print(table)
    return int(bool(total) and _score(total) < TARGET)


def is_explained(key: Key) -> bool:
    """Whether `survivors.txt` says why a mutant survives."""
    file, source_line, mutant, nth = key
    # The parts may hold the separator themselves.
    start = " | ".join((file, source_line, numbered(mutant, nth))) + " | "
    return any(line.startswith(start) for line in _lines(REASONS))


def numbered(mutant: str, nth: int) -> str:
    """A mutant with its number, where the same mistake can be made in the same line more than once."""
    return f"{mutant} #{nth + 1}" if nth else mutant


def outcomes(results: Path) -> dict[Key, dict]:
    """The newest result of each mutant."""
    newest = {}
    for line in _lines(results):
        result = json.loads(line)
        newest[result["file"], result["source_line"], result["mutant"], result["nth"]] = result
    return newest


def _candidates(file: str) -> list[Candidate]:
    path = ROOT / file
    return candidates_of(file, path.read_text()) if path.exists() else []


def _lines(file: Path) -> list[str]:
    return (
        [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
        if file.exists()
        else []
    )


def _score(results: list[dict]) -> float:
    return sum(result["outcome"] != "survived" for result in results) / max(len(results), 1)


def _percent(results: list[dict]) -> str:
    return f"{100 * _score(results):.1f} %"
