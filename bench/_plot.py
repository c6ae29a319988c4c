"""A result as a picture: bars of its metrics with their spread, and its curves as lines.

A metric named "group: series" is a bar of its group; metrics of one unit share a panel and an axis.
"""

from __future__ import annotations

from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from bench._result import Curve, Metric, Result, dig, plain
from pi_incubator.errors import UserError
from pi_incubator.evaluation.table import show

WIDTH_IN, DPI = 9.0, 150
# Heights of a bar, of the space above a group, of what surrounds a panel's bars, of a panel of curves.
BAR_IN, GROUP_IN, AROUND_IN, CURVE_IN, HEAD_IN = 0.25, 0.36, 0.72, 2.9, 0.82
LOG_RANGE = 40.0
"""Where the largest value of a panel is so many times the least, bars would hide the small ones."""
LABEL_SPACE = 0.16
"""Of the axis, right of the longest bar: room for its number."""
MAX_LINES_ABOVE = 3  # more are named beside the curves
MAX_LABEL, MAX_HEAD = 44, 120
MAX_HEIGHT_PX = 60_000  # matplotlib's own limit is 2**16


class Theme(NamedTuple):
    """Colours of a picture."""

    paper: str
    ink: str
    muted: str
    grid: str
    judged: str
    told: str
    lines: tuple[str, ...]


LIGHT = Theme(
    *("#ffffff", "#1f2933", "#616e7c", "#e4e7eb", "#2563eb", "#9aa5b1"),
    lines=("#2563eb", "#0f766e", "#b45309", "#7c3aed", "#be123c", "#4d7c0f"),
)
DARK = Theme(
    *("#161b22", "#e6edf3", "#9da7b3", "#2d333b", "#6ea8fe", "#6b7683"),
    lines=("#6ea8fe", "#4fd1c5", "#f6ad55", "#b794f4", "#fb7185", "#a3e635"),
)

Groups = dict[str, dict[str, Metric]]


def plot(result: Result, path: Path) -> Path:
    """Draw `result` as a PNG.

    Args:
        result: what `make_result` made.
        path: the file to write, or a folder, in which it is named after the bench.

    Returns:
        The file that was written.

    Raises:
        UserError: it cannot be written, or there is nothing to draw.
    """
    file = path / f"{result['bench']}.png" if path.is_dir() else path
    picture = draw(result)
    if picture is None:
        raise UserError(f"{file}: nothing was measured that could be drawn")
    try:
        file.write_bytes(picture)
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror}); name another file") from None
    return file


def draw(result: Result, theme: Theme = LIGHT) -> bytes | None:
    """`result` as the bytes of a PNG; None where it holds neither metrics nor curves."""
    panels = _panels(result["metrics"])
    curves: dict[str, Curve] = result.get("curves", {})
    if not panels and not curves:
        return None
    heights = [CURVE_IN] * len(curves) + [_height_in(groups) for groups in panels.values()]
    size = (WIDTH_IN, HEAD_IN + sum(heights))
    engine = ConstrainedLayoutEngine(rect=(0, 0, 1, 1 - HEAD_IN / size[1]), h_pad=0.08, w_pad=0.12)
    figure = Figure(figsize=size, dpi=min(DPI, MAX_HEIGHT_PX / size[1]), layout=engine, facecolor=theme.paper)
    grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    axes = [figure.add_subplot(grid[row], facecolor=theme.paper) for row in range(len(heights))]
    for ax, (title, curve) in zip(axes, curves.items(), strict=False):
        _draw_curve(ax, title, curve, theme)
    for ax, (label, groups) in zip(axes[len(curves) :], panels.items(), strict=True):
        _draw_bars(ax, label, groups, theme)
    _write_head(figure, result, theme)
    buffer = BytesIO()
    figure.savefig(buffer, facecolor=theme.paper)
    return buffer.getvalue()


def _panels(metrics: dict[str, Metric]) -> dict[str, Groups]:
    """Label of the axis -> group -> series -> metric, in the order of `metrics`; a panel has one unit."""
    panels: dict[str, Groups] = {}
    for name, metric in metrics.items():
        group, separator, series = name.partition(": ")
        group, series = (group, series) if separator else ("", name)
        panels.setdefault(metric["unit"], {}).setdefault(group, {})[series] = metric
    return dict(_without_headings(unit or "number", groups) for unit, groups in panels.items())


def _without_headings(unit: str, groups: Groups) -> tuple[str, Groups]:
    """One group of bars, where every group has a single one; what all bars share goes to the axis."""
    if any(len(members) > 1 for members in groups.values()):
        return unit, groups
    named = [(group, *member) for group, members in groups.items() for member in members.items()]
    if "" not in groups and len({series for _, series, _ in named}) == 1:
        return f"{named[0][1]}, {unit}", {"": {group: metric for group, _, metric in named}}
    return unit, {"": {f"{group}: {series}" if group else series: metric for group, series, metric in named}}


def _height_in(groups: Groups) -> float:
    num_bars = sum(map(len, groups.values()))
    return AROUND_IN + BAR_IN * num_bars + GROUP_IN * sum(map(bool, groups))


def _draw_bars(axes: Axes, label: str, groups: Groups, theme: Theme) -> None:
    """Horizontal bars from the top down, each with its whisker and its number."""
    metrics = [metric for group in groups.values() for metric in group.values()]
    is_log = _set_scale(axes, metrics)
    left, right = axes.get_xlim()
    y, ticks, labels = 0.0, [], []
    for group, members in groups.items():
        if group:
            y += GROUP_IN / 2
            axes.annotate(
                _cut(group), (0, y), xycoords=("axes fraction", "data"), xytext=(2, -1),
                textcoords="offset points", va="center", fontsize=9, fontweight="bold", color=theme.ink,
            )  # fmt: skip
            y += GROUP_IN / 2
        for series, metric in members.items():
            y += BAR_IN / 2
            _draw_bar(axes, y, metric, left if is_log else 0.0, theme, is_log)
            ticks.append(y)
            labels.append(_cut(series))
            y += BAR_IN / 2
    axes.set_xlim(left, right)
    axes.set_ylim(y + BAR_IN / 4, -BAR_IN / 4)
    axes.set_yticks(ticks, labels, fontsize=8.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(not is_log)
    _style(axes, theme, grid="x")
    directions = {"higher": "more is better", "lower": "less is better"}
    told = {directions.get(metric["better"]) for metric in metrics} - {None}
    notes = (*sorted(map(str, told)), *(("logarithmic",) if is_log else ()))
    axes.set_xlabel(", ".join((_cut(label, MAX_HEAD), *notes)), color=theme.muted, fontsize=8.5)


def _draw_bar(axes: Axes, y: float, metric: Metric, base: float, theme: Theme, is_log: bool) -> None:
    color = theme.judged if metric["better"] else theme.told
    middle, low, high = (metric[key] for key in ("median", "min", "max"))
    if is_log:
        axes.hlines(y, base, middle, color=color, linewidth=1, alpha=0.45)
        axes.plot(middle, y, "o", color=color, markersize=5.5, zorder=3)
    else:
        axes.barh(y, middle - base, height=0.68 * BAR_IN, left=base, color=color, zorder=2)
    if high > low:
        axes.hlines(y, low, high, color=theme.ink, linewidth=1.1, zorder=4)
        axes.vlines((low, high), y - 0.045, y + 0.045, color=theme.ink, linewidth=1.1, zorder=4)
    end = max(middle, high, 0.0 if not is_log else middle)
    axes.annotate(
        show(middle), (end, y), xytext=(6, 0), textcoords="offset points",
        va="center", fontsize=8.5, color=theme.ink,
    )  # fmt: skip


def _set_scale(axes: Axes, metrics: Iterable[Metric]) -> bool:
    """Limits with room for the numbers; whether the axis is logarithmic."""
    ends = [metric[key] for metric in metrics for key in ("median", "min", "max")]
    low, high = min(ends), max(ends)
    if low > 0 and high / low > LOG_RANGE:
        axes.set_xscale("log")
        least = low / 1.6
        axes.set_xlim(least, least * (high / least) ** (1 / (1 - LABEL_SPACE)))
        axes.xaxis.set_major_locator(LogLocator(10, numticks=8))
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}" if 1e-3 <= x < 1e4 else EngFormatter(sep="")(x))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
        return True
    low, high = min(low, 0.0), max(high, 0.0)
    reach = (high - low) or 1.0
    axes.set_xlim(low - (0.04 * reach if low < 0 else 0.0), high + LABEL_SPACE * reach / (1 - LABEL_SPACE))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    if reach >= 10_000:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    return False


def _draw_curve(axes: Axes, title: str, curve: Curve, theme: Theme) -> None:
    for index, (name, line) in enumerate(curve["lines"].items()):
        color = theme.lines[index % len(theme.lines)]
        is_fit = name.startswith("fit")
        marker = "o" if len(line["x"]) <= 12 and not is_fit else ""
        dashes = "--" if is_fit else "-"
        axes.plot(
            line["x"], line["y"], dashes, color=color, linewidth=1.8, marker=marker, ms=4.5, label=_cut(name)
        )  # fmt: skip
    _style(axes, theme, grid="both")
    axes.set_title(_cut(title), loc="left", fontsize=10, fontweight="bold", color=theme.ink)
    axes.set_xlabel(_cut(curve["x_label"]), color=theme.muted, fontsize=8.5)
    axes.set_ylabel(_cut(curve["y_label"]), color=theme.muted, fontsize=8.5)
    axes.xaxis.set_major_locator(MaxNLocator(8))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:,g}")
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,g}")
    axes.margins(x=0.02, y=0.1)
    num_lines = len(curve["lines"])
    if num_lines > 1:
        beside = num_lines > MAX_LINES_ABOVE
        axes.legend(
            loc="upper left" if beside else "lower right",
            bbox_to_anchor=(1.0, 1.0),
            ncols=1 if beside else num_lines,
            frameon=False,
            fontsize=8.5,
            labelcolor=theme.ink,
        )


def _style(axes: Axes, theme: Theme, grid: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(theme.muted)
    axes.grid(axis=grid, color=theme.grid, linewidth=0.8)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    axes.tick_params(colors=theme.muted, labelcolor=theme.ink, labelsize=8.5)


def _write_head(figure: Figure, result: Result, theme: Theme) -> None:
    """What was measured, where and when, and what the colours mean."""
    height_in = figure.get_size_inches()[1]
    where = ", ".join((str(dig(result, "machine", "cpu")), f"{dig(result, 'machine', 'cores')} cores"))
    found = dig(result, "machine", "gpus")
    gpus = "".join(f", {name}" for name in found) if isinstance(found, list) else ""
    commit = f", commit {str(dig(result, 'git', 'commit'))[:10]}" if result.get("git") else ""
    figure.text(
        0.12 / WIDTH_IN, 1 - 0.14 / height_in, f"pi-bench {_cut(result['bench'])}",
        va="top", fontsize=13, fontweight="bold", color=theme.ink,
    )  # fmt: skip
    below = _cut(f"{where}{gpus}, {result['measured_at'][:10]}{commit}", MAX_HEAD)
    legend = "Medians; whiskers from the least to the greatest round."
    kinds = {bool(metric["better"]) for metric in result["metrics"].values()}
    if kinds == {True, False}:
        legend += " Blue is judged by pi-bench compare, grey is for orientation."
    figure.text(
        0.12 / WIDTH_IN, 1 - 0.40 / height_in, f"{below}\n{legend if result['metrics'] else ''}",
        va="top", fontsize=8.5, linespacing=1.35, color=theme.muted,
    )  # fmt: skip


def _cut(text: str, most: int = MAX_LABEL) -> str:
    """`text` as matplotlib shows it unread ($ would begin a formula), of `most` characters."""
    text = plain(text)
    text = text if len(text) <= most else text[: most - 1] + "…"
    return text.replace("$", r"\$")
