"""The learning curve of a run as a picture."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator
from numpy.typing import NDArray

from pi_incubator.errors import UserError
from pi_incubator.tracking import read_metrics

RETURN = "episode/return"
# The smaller pictures: those whose metric was logged, in this order, the first six.
DETAILS = {
    "forward_velocity_m_s": "Forward velocity (m/s)",
    "episode/length": "Episode length (steps)",
    "env_steps_per_s": "Throughput (env steps/s)",
    "policy/kl": "KL divergence (nats)",
    "policy/lr": "Learning rate",
    "policy/entropy": "Entropy (nats)",
    "policy/std": "Action std",
    "loss/value": "Value loss",
}
NUM_DETAILS, COLUMNS = 6, 3
UNITS_S = {"h": 3600, "min": 60, "s": 1}
SMOOTHED_OVER = 0.08  # of the run

INK, MUTED, GRID = "#1f2933", "#7b8794", "#e4e7eb"
BLUE, TEAL = "#2563eb", "#0f766e"


class Series(NamedTuple):
    """One metric over the run, where it was logged and finite."""

    env_steps: NDArray[np.float64]
    values: NDArray[np.float64]


def draw_curve(metrics: Path, picture: Path, title: str = "") -> None:
    """Draw the return over environment steps (wall time above), and other metrics small, as a PNG.

    Args:
        metrics: a run's `metrics.jsonl`.
        picture: the file to write.
        title: above the picture.

    Raises:
        UserError: nothing was logged.
    """
    rows = read_metrics(metrics)
    if not rows:
        raise UserError(f"{metrics}: holds no metrics; train for at least one logged iteration")
    details = [name for name in DETAILS if _series(rows, name).values.size][:NUM_DETAILS]
    num_rows = -(-len(details) // COLUMNS)
    figure = Figure(figsize=(10, 4.6 + 1.9 * num_rows), dpi=150, layout="constrained")
    grid = figure.add_gridspec(1 + num_rows, COLUMNS, height_ratios=[2.4] + [1] * num_rows)
    main = figure.add_subplot(grid[0, :])
    _draw_return(main, rows)
    _add_wall_time(main, rows)
    for index, name in enumerate(details):
        axes = figure.add_subplot(grid[1 + index // COLUMNS, index % COLUMNS])
        _draw_detail(axes, _series(rows, name), DETAILS[name])
    if title:
        style = {"fontsize": 13, "fontweight": "bold", "color": INK, "parse_math": False}
        figure.suptitle(title, x=0.01, ha="left", **style)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a name may have letters that the font lacks
        figure.savefig(picture)


def _series(rows: list[dict[str, Any]], name: str) -> Series:
    points = [(row["env_steps"], row[name]) for row in rows if row.get(name) is not None]
    env_steps, values = np.array(points, dtype=np.float64).reshape(-1, 2).T
    return Series(env_steps, values)


def _draw_return(axes: Axes, rows: list[dict[str, Any]]) -> None:
    series = _series(rows, RETURN)
    _style(axes, fontsize=10)
    axes.set_xlabel("Environment steps", color=INK)
    axes.set_ylabel("Episode return", color=INK)
    if not series.values.size:
        axes.text(0.5, 0.5, "no episode has ended yet", transform=axes.transAxes, ha="center", color=MUTED)
        return
    smooth = _smooth(series.values)
    axes.plot(*series, color=BLUE, alpha=0.25, linewidth=1)
    axes.plot(series.env_steps, smooth, color=BLUE, linewidth=2.2)
    axes.plot(series.env_steps[-1], smooth[-1], "o", color=BLUE, markersize=5)
    axes.annotate(
        f"{smooth[-1]:,.0f}" if abs(smooth[-1]) >= 100 else f"{smooth[-1]:.3g}",
        (series.env_steps[-1], smooth[-1]),
        xytext=(-6, 9),
        textcoords="offset points",
        ha="right",
        color=BLUE,
        fontweight="bold",
    )


def _draw_detail(axes: Axes, series: Series, label: str) -> None:
    _style(axes, fontsize=8)
    axes.plot(*series, color=TEAL, alpha=0.25, linewidth=0.8)
    axes.plot(series.env_steps, _smooth(series.values), color=TEAL, linewidth=1.4)
    axes.set_title(label, fontsize=9, color=INK, loc="left")
    if series.values.size and abs(series.values).max() >= 10_000:
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))


def _style(axes: Axes, fontsize: int) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelcolor=INK, labelsize=fontsize)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(5 if fontsize < 10 else 8))
    axes.margins(x=0.02)


def _add_wall_time(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """A second axis above with the wall time at which each number of steps was reached."""
    env_steps = np.array([row["env_steps"] for row in rows], dtype=np.float64)
    wall_s = np.array([row["wall_s"] for row in rows], dtype=np.float64)
    unit, seconds = next((unit, s) for unit, s in UNITS_S.items() if wall_s[-1] >= 2 * s or s == 1)
    ticks = MaxNLocator(8, steps=[1, 2, 5, 10]).tick_values(0, wall_s[-1] / seconds)
    ticks = ticks[(ticks >= wall_s[0] / seconds) & (ticks <= wall_s[-1] / seconds)]
    above = axes.secondary_xaxis("top")
    above.set_xticks(np.interp(ticks * seconds, wall_s, env_steps), [f"{tick:g}" for tick in ticks])
    above.tick_params(colors=MUTED, labelcolor=MUTED)
    above.spines["top"].set_color(GRID)
    above.set_xlabel(f"Wall time ({unit})", color=MUTED)


def _smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over a window around each point, cut off at the ends; a running average would lag."""
    half = int(SMOOTHED_OVER * len(values) / 2)
    sums = np.concatenate(([0.0], np.cumsum(values)))
    index = np.arange(len(values))
    first, last = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (sums[last] - sums[first]) / (last - first)
