"""Heat maps of what is left of a return, as one picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

INK, MUTED = "#1f2933", "#7b8794"
LOW, HIGH = 0.0, 1.0
"""Where the colors end: everything is lost, nothing is."""


@dataclass(frozen=True)
class Panel:
    """One grid of shares."""

    x_label: str
    y_label: str
    x: Sequence[float]
    y: Sequence[float]
    inner_x: Sequence[float]
    inner_y: Sequence[float]
    """Levels of the cells that count; they are framed."""
    shares: NDArray[np.float64]
    """`[len(y), len(x)]`."""


def draw_panels(panels: Sequence[Panel], title: str) -> bytes:
    """The panels side by side, as a PNG."""
    figure = Figure(figsize=(1.5 + 4.4 * len(panels), 4.6), dpi=150, layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, panel in zip(grid, panels, strict=True):
        image = _draw(axes, panel)
    bar = figure.colorbar(image, ax=list(grid), label="share of the return", shrink=0.8)
    bar.outline.set_visible(False)
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold", color=INK)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _draw(axes: Axes, panel: Panel) -> Any:
    image = axes.imshow(panel.shares, origin="lower", cmap="viridis", vmin=LOW, vmax=HIGH, aspect="auto")
    axes.set_xticks(range(len(panel.x)), [f"{level:g}" for level in panel.x])
    axes.set_yticks(range(len(panel.y)), [f"{level:g}" for level in panel.y])
    axes.set_xlabel(panel.x_label, color=INK)
    axes.set_ylabel(panel.y_label, color=INK)
    axes.tick_params(length=0, colors=MUTED, labelcolor=INK)
    axes.spines[:].set_visible(False)
    for (row, column), share in np.ndenumerate(panel.shares):
        color = "white" if share < 0.6 * HIGH else INK
        axes.text(column, row, f"{share:.2f}", ha="center", va="center", color=color, fontsize=9)
    columns = [panel.x.index(level) for level in panel.inner_x]
    rows = [panel.y.index(level) for level in panel.inner_y]
    corner = (min(columns) - 0.5, min(rows) - 0.5)
    frame = Rectangle(corner, len(columns), len(rows), fill=False, edgecolor="#dc2626", linewidth=2)
    axes.add_patch(frame)
    return image
