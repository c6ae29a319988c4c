"""What became of the mutants."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.mutation.candidate import Key

REASONS = Path(__file__).parent
"""Where `survivors*.txt` list what no test should kill: `file | line of source | mutant | reason`."""
TARGET = 0.9


def print_report(results: Path, files: list[str]) -> int:
    """Print each file's score and the survivors without a reason; returns 1 if it is below `TARGET`."""
    reasons = [line for file in sorted(REASONS.glob("survivors*.txt")) for line in _lines(file)]
    by_file: dict[str, list[dict]] = defaultdict(list)
    for key, result in sorted(outcomes(results).items()):
        if not files or any(result["file"].startswith(file.rstrip("/")) for file in files):
            start = " | ".join(key[:3]) + " | "  # parts may hold the separator themselves
            result["explained"] = any(line.startswith(start) for line in reasons)
            by_file[result["file"]].append(result)
    table = Table("file", "tested", "noticed", "explained", "score")
    total = [result for of_file in by_file.values() for result in of_file]
    for name, of_file in [*by_file.items(), ("all", total)]:
        survived = [result for result in of_file if result["outcome"] == "survived"]
        explained = sum(result["explained"] for result in survived)
        table.add_row(
            name, str(len(of_file)), str(len(of_file) - len(survived)), str(explained), _percent(of_file)
        )
    for result in total:
        if result["outcome"] == "survived" and not result["explained"]:
            print(
                f"survived {result['file']}:{result['line']} | {result['source_line']} | {result['mutant']}"
            )
    Console(width=120).print(table)
    return int(bool(total) and _score(total) < TARGET)


def outcomes(results: Path) -> dict[Key, dict]:
    """The newest result of each mutant."""
    newest = {}
    for line in _lines(results):
        result = json.loads(line)
        newest[result["file"], result["source_line"], result["mutant"], result["nth"]] = result
    return newest


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
