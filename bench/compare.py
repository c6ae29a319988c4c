"""Whether B is slower than A: ratios of two results of one bench, and exit code 1 where a metric is worse.

A ratio is B over A, turned so that more than 1 is better, of medians. Where each median lies within the
middle half of the other's rounds, the difference is noise and fails nothing; one round has no spread. What is
judged in A and missing in B fails. Metrics of peers and the like are told, not judged. Settings must be
equal, and so must hardware, unless --allow-different-hardware says that you know.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import quantiles
from typing import Any, NamedTuple

from bench._result import Metric, Result, read_result
from pi_incubator.errors import UserError
from pi_incubator.evaluation.table import Cell, print_table, show

HARDWARE = ("cpu", "cores", "gpus")
FAIL_BELOW = 0.95
NO_VALUE = object()


class Ratio(NamedTuple):
    """One metric in two results."""

    a: Metric
    b: Metric
    ratio: float | None
    """B over A, more than 1 is better (where neither way is: as it is); None where one is not positive."""
    is_noise: bool
    is_regression: bool

    @property
    def verdict(self) -> str:
        """In a word or two, for the table."""
        if not self.a["better"]:
            return "not judged"
        if self.is_regression:
            return "REGRESSION"
        if self.ratio is None:
            return "not judged: no ratio of such numbers"
        if self.is_noise:
            return "noise"
        return "better" if self.ratio > 1.0 else "worse"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `main` reads."""
    parser.add_argument("a", type=Path, metavar="A.json", help="what to compare with")
    parser.add_argument("b", type=Path, metavar="B.json", help="what is judged")
    limit_help = f"a smaller ratio is a regression (default: {FAIL_BELOW})"
    parser.add_argument("--fail-below", type=_limit, default=FAIL_BELOW, metavar="RATIO", help=limit_help)
    hardware_help = "go on where the machines differ"
    parser.add_argument("--allow-different-hardware", action="store_true", help=hardware_help)


def main(arguments: argparse.Namespace) -> int:
    """Print the table; 1 where something became worse, else 0.

    Raises:
        UserError: the two cannot be read, or not be compared.
    """
    a, b = read_result(arguments.a), read_result(arguments.b)
    check_comparable(a, b, arguments)
    ratios = compare(a, b, arguments.fail_below)
    print_table(
        {name: _row(ratio) for name, ratio in ratios.items()},
        title=f"pi-bench {a['bench']}: A {_origin(a)}, B {_origin(b)}",
        first_column="metric",
    )
    for line in _notes(a, b):
        print(line)
    worse = [name for name, ratio in ratios.items() if ratio.is_regression]
    if worse:
        print(f"{len(worse)} of {len(ratios)} below {arguments.fail_below:g}: {', '.join(worse)}")
    lost = [name for name, metric in a["metrics"].items() if metric["better"] and name not in b["metrics"]]
    if lost:
        print(f"judged in A and not measured in B: {', '.join(lost)}")
    return 1 if worse or lost else 0


def compare(a: Result, b: Result, fail_below: float) -> dict[str, Ratio]:
    """Every metric that both results have, in the order of A."""
    return {
        name: _ratio(metric, b["metrics"][name], fail_below)
        for name, metric in a["metrics"].items()
        if name in b["metrics"]
    }


def check_comparable(a: Result, b: Result, arguments: argparse.Namespace) -> None:
    """Raises a UserError where numbers of `a` and `b` say nothing of one another."""
    files = f"{arguments.a} and {arguments.b}"
    if a["bench"] != b["bench"]:
        raise UserError(
            f"{files}: bench = {a['bench']!r} and {b['bench']!r}; compare results of one subcommand"
        )
    if differing := _differences(a["settings"], b["settings"]):
        raise UserError(f"{files}: settings differ: {differing}; measure B with the settings of A")
    differing = _differences(_hardware(a), _hardware(b))
    if differing and not arguments.allow_different_hardware:
        fix = "measure both on one machine, or --allow-different-hardware"
        raise UserError(f"{files}: hardware differs: {differing}; {fix}")
    common = a["metrics"].keys() & b["metrics"].keys()
    if not common:
        raise UserError(f"{files}: no metric in common; measure B as A was: {a['command']}")
    for name in sorted(common):
        kinds = [{key: one["metrics"][name][key] for key in ("unit", "better")} for one in (a, b)]
        if differing := _differences(kinds[0], kinds[1]):
            raise UserError(f"{files}: {name}: {differing}; measure both with one pi-bench")


def _ratio(a: Metric, b: Metric, fail_below: float) -> Ratio:
    better, worse = (a, b) if a["better"] == "lower" else (b, a)
    ratio = better["median"] / worse["median"] if a["median"] > 0 and b["median"] > 0 else None
    stopped = a["better"] == "higher" and a["median"] > 0 >= b["median"]
    # Both ways, and of quartiles: a single wild round excuses neither.
    is_noise = _is_within(b["median"], a) and _is_within(a["median"], b) and not stopped
    is_worse = stopped or (ratio is not None and ratio < fail_below)
    return Ratio(a, b, ratio, is_noise, bool(a["better"]) and is_worse and not is_noise)


def _is_within(value: float, metric: Metric) -> bool:
    """Whether `value` lies in the middle half of what the rounds spread over."""
    rounds = metric["rounds"]
    low, _, high = quantiles(rounds, n=4, method="inclusive") if len(rounds) > 1 else rounds * 3
    return bool(low <= value <= high)


def _row(ratio: Ratio) -> dict[str, Cell]:
    def with_spread(metric: Metric) -> str:
        spread = metric["max"] - metric["min"]
        return show(metric["median"]) + (f" ± {show(spread / 2)}" if spread else "")

    return {
        "A": with_spread(ratio.a),
        "B": with_spread(ratio.b),
        "unit": ratio.a["unit"],
        "B/A": None if ratio.ratio is None else f"{ratio.ratio:.3f}",
        "": ratio.verdict,
    }


def _notes(a: Result, b: Result) -> list[str]:
    """What else differs between the two."""
    lines = []
    for name, here, there in (("A", a, b), ("B", b, a)):
        alone = [metric for metric in here["metrics"] if metric not in there["metrics"]]
        lines += [f"only in {name}: {', '.join(alone)}"] if alone else []
    for what, differing in (
        ("hardware", _differences(_hardware(a), _hardware(b))),
        ("versions", _differences(a["versions"], b["versions"])),
    ):
        lines += [f"{what} differ: {differing}"] if differing else []
    return lines


def _hardware(result: Result) -> dict[str, Any]:
    return {key: result["machine"].get(key) for key in HARDWARE}


def _origin(result: Result) -> str:
    git = result.get("git")
    commit = f"commit {str(git.get('commit'))[:10]}" if isinstance(git, dict) else "no commit"
    return f"{result['measured_at'][:16].replace('T', ' ')}, {commit}"


def _differences(a: dict[str, Any], b: dict[str, Any], prefix: str = "") -> str:
    """`key: A has x, B has y`, down into mappings, for every key that is not equal; empty where all are."""
    told = []
    for key in dict.fromkeys((*a, *b)):
        left, right = a.get(key, NO_VALUE), b.get(key, NO_VALUE)
        if left == right:
            continue
        if isinstance(left, dict) and isinstance(right, dict):
            told.append(_differences(left, right, f"{prefix}{key}."))
        else:
            told.append(f"{prefix}{key}: A has {_say(left)}, B has {_say(right)}")
    return ", ".join(told)


def _say(value: Any) -> str:
    return "none" if value is NO_VALUE else repr(value)


def _limit(text: str) -> float:
    """A number above 0 and up to 1, for `type=`."""
    try:
        limit = float(text)
    except ValueError:
        limit = 0.0
    if not 0.0 < limit <= 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a ratio above 0 and up to 1, such as {FAIL_BELOW}")
    return limit
