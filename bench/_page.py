"""Results as one HTML page that needs nothing else: pictures are inside it, and no script runs.

The markup is well-formed XML too, and every word that comes from a result goes through `_text`.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from bench._gpu_figures import figures, found
from bench._plot import DARK, draw
from bench._result import Metric, Result, dig, plain
from pi_incubator.evaluation.table import show

STYLE = """
:root { color-scheme: light dark; --paper: #f7f8fa; --card: #ffffff; --ink: #1f2933; --muted: #616e7c;
  --line: #e4e7eb; --accent: #2563eb; --code: #f0f2f5; }
@media (prefers-color-scheme: dark) { :root { --paper: #0d1117; --card: #161b22; --ink: #e6edf3;
  --muted: #9da7b3; --line: #2d333b; --accent: #6ea8fe; --code: #0d1117; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .25rem; letter-spacing: -.02em; }
h2 { font-size: 1.3rem; margin: 0 0 .25rem; letter-spacing: -.01em; }
h3 { font-size: 1rem; margin: 1.5rem 0 .25rem; }
p { margin: .25rem 0; }
a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
.muted { color: var(--muted); }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 1.5rem; margin-top: 1.5rem; }
.scroll { overflow-x: auto; margin-top: .75rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .75rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { color: var(--muted); font-weight: 600; font-size: .8rem; white-space: nowrap; }
tr:last-child td { border-bottom: 0; }
th:first-child, td:first-child { padding-left: 0; } th:last-child, td:last-child { padding-right: 0; }
.number { text-align: right; white-space: nowrap; }
.judged { font-weight: 600; }
.unbroken { white-space: nowrap; }
code, pre { font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
pre { background: var(--code); border: 1px solid var(--line); border-radius: 8px; padding: .6rem .8rem;
  margin: .75rem 0; white-space: pre-wrap; overflow-wrap: anywhere; }
td code { overflow-wrap: anywhere; }
img { display: block; width: 100%; max-width: 56rem; height: auto; margin: 1rem auto 0; border-radius: 8px; }
details { margin-top: .75rem; } summary { cursor: pointer; color: var(--muted); }
"""


def page(results: Sequence[tuple[str, Result]], made_at: datetime | None = None) -> str:
    """The page.

    Args:
        results: name of a file and what it holds, in the order of the sections.
        made_at: what the page is dated; now where it is not said.
    """
    at = f"{made_at or datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    number = f"{len(results)} {'result' if len(results) == 1 else 'results'}"
    sections = "\n".join(_section(index, file, one) for index, (file, one) in enumerate(results))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8" />
<meta name="viewport" content="width=device-width, initial-scale=1" />
<title>pi_incubator: measurements</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>pi_incubator: measurements</h1>
<p class="muted">Written by pi-bench report on {_text(at)} from {number}.</p>
{_summary(results)}
{_on_gpu([result for _, result in results])}
{sections}
</main>
</body>
</html>
"""


def _summary(results: Sequence[tuple[str, Result]]) -> str:
    """What there is, where it was measured, and with which versions."""
    rows = (
        [
            f'<a href="#result-{index}">{_text(one["bench"])}</a>',
            _text(file),
            _text(_machine(one)),
            _unbroken(_commit(one)),
            _unbroken(_moment(one)),
            str(len(one["metrics"])),
        ]
        for index, (file, one) in enumerate(results)
    )
    table = _table(["Bench", "File", "Hardware", "Commit", "Measured (UTC)", "Metrics"], rows, numbers={5})
    versions = f"<h3>Versions</h3>\n<p>{_versions(result for _, result in results)}</p>"
    return f"<section>\n<h2>Summary</h2>\n{table}\n{versions}\n</section>"


def _versions(results: Iterable[Result]) -> str:
    """Every package with its version, or versions where results differ."""
    merged: dict[str, dict[str, None]] = {}
    for result in results:
        for package, version in result["versions"].items():
            if version:
                merged.setdefault(package, {})[str(version)] = None
    return ", ".join(
        f"{_text(package)}&#160;{_text(' | '.join(versions))}" for package, versions in merged.items()
    )


def _on_gpu(results: Sequence[Result]) -> str:
    """Every figure that a GPU is asked for, with its value or without, and the commands that measure them."""
    rows = []
    commands: dict[str, None] = {}
    for figure in figures():
        value = found(figure, results)
        cell = _text(value) if value else '<span class="muted">not measured</span>'
        rows.append([_text(figure.what), cell, _text(figure.aim)])
        commands[_text(figure.command)] = None
    table = _table(["Figure", "Value", "Aim"], rows, numbers={1, 2})
    listed = "\n".join(commands)
    return (
        f'<section id="gpu">\n<h2>On a GPU</h2>\n{table}\n<h3>Commands that measure them</h3>\n'
        f"<pre><code>{listed}</code></pre>\n</section>"
    )


def _section(index: int, file: str, result: Result) -> str:
    """One result: where and how, its picture, its table, and what it left out."""
    parts = [
        f'<section id="result-{index}">',
        f"<h2>{_text(result['bench'])}</h2>",
        f'<p class="muted">{_text(file)}: {_text(_machine(result))}; commit {_text(_commit(result))}; '
        f"{_text(_moment(result))} UTC; load before {_text(dig(result, 'machine', 'load_average_1min'))}</p>",
        f"<pre><code>{_text(result['command'])}</code></pre>",
        _picture(result),
        _metrics(result["metrics"]) if result["metrics"] else "<p>Not measured.</p>",
        *_left_out(result.get("not_measured", {})),
        _details("Settings", json.dumps(result["settings"], indent=2, ensure_ascii=False)),
        _details("Machine and versions", _as_lines(result)),
        "</section>",
    ]
    return "\n".join(part for part in parts if part)


def _metrics(metrics: dict[str, Metric]) -> str:
    rows = (
        [
            f'<span class="judged">{_text(name)}</span>' if one["better"] else _text(name),
            _text(show(one["median"])),
            _text(show(one["min"])),
            _text(show(one["max"])),
            _spread(one),
            str(len(one["rounds"])),
            _text(one["unit"]),
            _text(one["better"] or "told"),
        ]
        for name, one in metrics.items()
    )
    columns = ["Metric", "Median", "Least", "Greatest", "Spread", "Rounds", "Unit", "Better"]
    return _table(columns, rows, numbers={1, 2, 3, 4, 5})


def _spread(metric: Metric) -> str:
    """From the least to the greatest round, of the median."""
    if len(metric["rounds"]) < 2 or not metric["median"]:
        return '<span class="muted">-</span>'
    return f"{100.0 * (metric['max'] - metric['min']) / abs(metric['median']):.1f}&#160;%"


def _left_out(reasons: dict[str, Any]) -> Iterator[str]:
    if reasons:
        yield "<h3>Not measured</h3>"
        yield _table(["What", "Why"], ([_text(name), _text(reason)] for name, reason in reasons.items()))


def _picture(result: Result) -> str:
    light, dark = draw(result), draw(result, DARK)
    if light is None or dark is None:
        return ""
    alternative = f"{result['bench']}: medians and spread of the table below"
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{_data_uri(dark)}" />'
        f'<img src="{_data_uri(light)}" alt="{_text(alternative)}" /></picture>'
    )


def _data_uri(picture: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture).decode('ascii')}"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int] = ()) -> str:
    """A table of cells that are markup already; the columns in `numbers` are aligned right."""
    kinds = [' class="number"' if index in set(numbers) else "" for index in range(len(columns))]
    head = "".join(f"<th{kind}>{column}</th>" for kind, column in zip(kinds, columns, strict=True))
    body = "\n".join(
        f"<tr>{''.join(f'<td{kind}>{cell}</td>' for kind, cell in zip(kinds, row, strict=True))}</tr>"
        for row in rows
    )
    table = f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"
    return f'<div class="scroll">{table}</div>'


def _details(title: str, lines: str) -> str:
    escaped = "\n".join(_text(line, indented=True) for line in lines.split("\n"))
    return f"<details><summary>{title}</summary><pre><code>{escaped}</code></pre></details>"


def _as_lines(result: Result) -> str:
    pairs = {**result["machine"], **result["versions"]}
    return "\n".join(f"{name}: {plain(value)}" for name, value in pairs.items() if value is not None)


def _machine(result: Result) -> str:
    machine = result["machine"]
    gpus = machine.get("gpus") if isinstance(machine.get("gpus"), list) else []
    return ", ".join(
        (str(machine.get("cpu")), f"{machine.get('cores')} cores", *map(str, gpus or ["no GPU"]))
    )


def _commit(result: Result) -> str:
    commit, dirty = dig(result, "git", "commit"), dig(result, "git", "dirty")
    return f"{str(commit)[:10]}{' with changes' if dirty else ''}" if commit else "unknown"


def _moment(result: Result) -> str:
    return str(result["measured_at"][:16].replace("T", " "))


def _unbroken(value: str) -> str:
    return f'<span class="unbroken">{_text(value)}</span>'


def _text(value: Any, indented: bool = False) -> str:
    """`value` as text of the page: one line, nothing of it is markup."""
    text = plain(value)
    indent = len(str(value)) - len(str(value).lstrip(" ")) if indented else 0
    return " " * indent + html.escape(text, quote=True)
