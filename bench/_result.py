"""The file that every measurement writes: one schema, so that any two of a kind can be compared."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench._machine import describe
from pi_incubator.errors import UserError

BETTER = ("higher", "lower", "")
SCHEMA = 1
"""Raised when the meaning of a field changes."""

Metric = dict[str, Any]
Curve = dict[str, Any]
Result = dict[str, Any]


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


def make_curve(
    x_label: str, y_label: str, lines: Mapping[str, tuple[Sequence[float], Sequence[float]]]
) -> Curve:
    """What plots draw as lines beside the metrics: name of a line -> its x and y."""
    drawn = {name: {"x": list(x), "y": list(y)} for name, (x, y) in lines.items()}
    return {"x_label": x_label, "y_label": y_label, "lines": drawn}


def make_result(bench: str, settings: dict[str, Any], metrics: dict[str, Metric], **rest: Any) -> Result:
    """What `--json` writes.

    Args:
        bench: the subcommand.
        settings: what was measured; two results are comparable where these are equal.
        metrics: name -> `make_metric`; in "group: series" plots and pages show a group's series together.
        **rest: further entries, for readers of this kind of result only; of these `curves` (title ->
            `make_curve`) is drawn, and `not_measured` (name -> reason) is told.
    """
    head = {"schema": SCHEMA, "bench": bench, **describe()}
    return head | {"settings": settings, "metrics": metrics, **rest}


def read_result(path: Path) -> Result:
    """A result that `make_result` made.

    Raises:
        UserError: it cannot be read, is no result, or is one of another schema.
    """
    fix = "name a file that pi-bench --json wrote"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {fix}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}); {fix}") from None
    if not isinstance(result, dict) or "schema" not in result:
        raise UserError(f"{path}: schema is missing; {fix}")
    if result["schema"] != SCHEMA:
        found = result["schema"]
        raise UserError(f"{path}: schema = {found!r}: this pi-bench reads {SCHEMA}; measure again with it")
    if lack := _lack(result):
        raise UserError(f"{path}: {lack}; {fix}")
    lost = [name for name, metric in result["metrics"].items() if metric["median"] is None]
    reasons = dict.fromkeys(lost, "was not finite")
    result["metrics"] = {name: result["metrics"][name] for name in result["metrics"] if name not in reasons}
    result["not_measured"] = reasons | result.get("not_measured", {})
    return result


def dig(data: Any, *keys: str) -> Any:
    """`data[key][key]...`, or None where one of them is missing: files are as others wrote them."""
    for key in keys:
        data = data.get(key) if isinstance(data, dict) else None
    return data


def plain(value: Any) -> str:
    """`value` as one line of text that can be printed, drawn and encoded."""
    text = str(value).encode("utf-8", "replace").decode("utf-8")
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _lack(result: Result) -> str | None:
    """What a reader of `result` would stumble over; None for a whole result."""
    kinds: dict[str, type] = {"bench": str, "command": str, "measured_at": str}
    kinds |= dict.fromkeys(("machine", "versions", "settings", "metrics"), dict)
    for key, kind in kinds.items():
        if not isinstance(result.get(key), kind):
            return f"{key} is missing or no {'text' if kind is str else 'mapping'}"
    lacks = (lack for name, metric in result["metrics"].items() if (lack := _lack_of_metric(name, metric)))
    if lack := next(lacks, None):
        return lack
    if not isinstance(result.get("not_measured", {}), dict):
        return "not_measured is no mapping"
    if not _are_curves(result.get("curves", {})):
        return "curves are not lines of equally many x and y"
    return None


def _lack_of_metric(name: str, metric: Any) -> str | None:
    if not isinstance(metric, dict) or not isinstance(metric.get("unit"), str):
        return f"metrics.{name}.unit is missing"
    if metric.get("better") not in BETTER:
        return f"metrics.{name}.better is none of {', '.join(map(repr, BETTER))}"
    numbers = [metric.get(key) for key in ("median", "min", "max")]
    # What was not finite when it was written is null: no JSON number stands for it.
    rounds = metric.get("rounds")
    is_whole = isinstance(rounds, list) and rounds and all(map(_is_number, (*numbers, *rounds)))
    if not is_whole and not (isinstance(rounds, list) and metric.get("median", "") is None):
        return f"metrics.{name} lacks rounds, or a number in median, min or max"
    return None


def _are_curves(curves: Any) -> bool:
    def is_line(line: Any) -> bool:
        x, y = line["x"], line["y"]
        return len(x) == len(y) and all(map(_is_number, (*x, *y)))

    try:
        return all(
            isinstance(curve["x_label"], str)
            and isinstance(curve["y_label"], str)
            and all(map(is_line, curve["lines"].values()))
            for curve in curves.values()
        )
    except (AttributeError, KeyError, TypeError):
        return False


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
