"""One table for every command that reports numbers, and the same numbers as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pi_incubator.errors import UserError

Cell = str | int | float | bool | None
Rows = Mapping[str, Mapping[str, Cell]]

WIDTH_WHEN_PIPED = 120  # rich would wrap at 80 columns, in the middle of names


def print_table(rows: Rows, *, title: str = "", first_column: str = "") -> None:
    """Print `rows` (name -> column -> value), one line a name; a value that a row lacks stays empty."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    table = Table(title=title or None, title_justify="left", title_style="bold")
    table.add_column(first_column, no_wrap=True)
    for column in columns:
        numeric = any(isinstance(row.get(column), int | float) for row in rows.values())
        table.add_column(column, justify="right" if numeric else "left")
    for name, row in rows.items():
        table.add_row(name, *(show(row.get(column)) for column in columns))
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console = Console(markup=False, emoji=False, highlight=False, width=WIDTH_WHEN_PIPED)
    console.print(table)


def show(value: Cell) -> str:
    """A number with as many digits as one wants to read: 1,234,567, 1,235, 12.35, 1.2e-05."""
    if value is None:
        return ""
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    size = abs(value)
    if not math.isfinite(value) or size == 0:
        return f"{value:.4g}"
    if size < 1e-3 or size >= 1e9:
        return f"{value:.3g}"
    decimals = max(0, 3 - max(0, math.floor(math.log10(size))))
    return f"{value:,.{decimals}f}"


def write_json(data: Any, path: str | Path) -> None:
    """Write `data` to `path` as JSON; what is not finite becomes null, which JSON has no number for.

    Raises:
        UserError: the file cannot be written.
    """
    text = json.dumps(_finite(data), indent=2, allow_nan=False) + "\n"
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); name another file") from None


def _finite(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
