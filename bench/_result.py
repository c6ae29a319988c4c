"""The file that every measurement writes: one schema, so that any two of a kind can be compared."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench._machine import describe
from pi_incubator.errors import UserError

SCHEMA = 1
"""Raised when the meaning of a field changes."""

Metric = dict[str, Any]


def make_metric(rounds: Iterable[float], unit: str, better: str = "higher") -> Metric:
    """A measured quantity: one number a round, and what a reader and `compare` need to judge it.

    Args:
        rounds: what was measured.
        unit: such as "steps/s".
        better: "higher", "lower", or "" for what is told but not judged.
    """
    values = list(rounds)
    return {"unit": unit, "better": better, **spread(values), "rounds": values}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and largest."""
    return {"median": median(values), "min": min(values), "max": max(values)}


def make_result(
    bench: str, settings: dict[str, Any], metrics: dict[str, Metric], **rest: Any
) -> dict[str, Any]:
    """What `--json` writes.

    Args:
        bench: the subcommand.
        settings: what was measured; two results are comparable where these are equal.
        metrics: name -> `make_metric`.
        **rest: further entries, for readers of this kind of result only.
    """
    head = {"schema": SCHEMA, "bench": bench, **describe()}
    return head | {"settings": settings, "metrics": metrics, **rest}


def read_result(path: Path) -> dict[str, Any]:
    """A result that `make_result` made.

    Raises:
        UserError: it cannot be read, is no result, or is one of another schema.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); name a file that pi-bench --json wrote") from None
    if not isinstance(result, dict) or "schema" not in result:
        raise UserError(f"{path}: schema is missing; name a file that pi-bench --json wrote")
    if result["schema"] != SCHEMA:
        found = result["schema"]
        raise UserError(f"{path}: schema = {found!r}: this pi-bench reads {SCHEMA}; measure again with it")
    return result
