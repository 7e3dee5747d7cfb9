"""The pictures of a result, for papers and slides: pure views of the records, without pyplot."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from groupnorm.lab.analysis.curves import X_NAMES, Trouble, dodge, mean_curves, settings, troubles, wants_log
from groupnorm.lab.common.metric import Metric
from groupnorm.lab.plots import axis_diagrams
from groupnorm.lab.plots.palette import Style, styles
from groupnorm.lab.plots.style import (
    INK,
    end_labels,
    headings,
    house_style,
    line_style,
    new_picture,
    plain_axes,
    power_axis,
    set_layout,
)
from groupnorm.sets import SharedSet

if TYPE_CHECKING:
    from groupnorm.lab.analysis.results import Results

_LANE = 0.36  # inches of height for each line of marks without a result
_LABEL = 0.2  # for each norm beyond those whose names fit beside the usual height
_MARKS = {"undefined": "o", "diverged": "X", "crashed": "s"}
_SHADES = {"top": 0.72, "left": 0.95, "right": 0.84}


def error_over_batch_size(result: Results) -> Figure:
    """Figure 1 of Wu & He 2018: validation error over batch size, mean and 95% interval, each seed a dot.

    Cells that ended without a result are marked above the axes.
    """
    with house_style():
        return _over_x(result, result.metric.key, f"Validation {result.metric.name}")


def throughput(result: Results) -> Figure:
    """Training images per second over batch size; each dot is a cell, the line is the median."""
    with house_style():
        return _over_x(result, result.task.rate, f"Training {result.task.sample}s per second")


def learning_curves(result: Results) -> Figure:
    """Validation (solid) and training error (dotted) by epoch, a panel for each batch size."""
    table, curves, x = result.table, result.curves, result.x
    key, train_key = result.metric.key, result.metric.train_key
    panels = settings(table, x)
    looks = styles(list(dict.fromkeys(cell.norm for cell in result.cells)))
    columns = min(max(len(panels), 1), 5)
    rows = math.ceil(len(panels) / columns) or 1
    with house_style():
        figure = new_picture(max(2.3 * columns, 5.5), 2.7 * rows + 1.1)
        headings(figure, f"Learning curves by {X_NAMES[x]}", "validation solid, training dotted; faint: single seeds")
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        means = {column: mean_curves(curves, column) for column in (key, train_key)}
        for axes, value in zip(grid.flat, panels, strict=False):
            axes.set_title(f"{X_NAMES[x]} {value}", size=10, loc="left")
            for norm, look in looks.items():
                _curves(
                    axes, look, _only(curves, norm, x, value), key, *(_only(m, norm, x, value) for m in means.values())
                )
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        drawn = [*curves[key], *curves[train_key]] if len(curves) else []
        for axes in grid.flat:
            plain_axes(axes, log=wants_log(drawn), percent=result.metric.is_percent)
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.set_xlabel("epoch")
        handles = [Line2D([], [], label=look.label, **line_style(look)) for look in looks.values()]
        figure.legend(handles=handles, loc="outside lower left", ncols=6, frameon=False, borderaxespad=0.2)
    return figure


def shared_sets(norms: Iterable[str]) -> Figure:
    """Figure 2 of Wu & He 2018: the elements that share one mean and one variance, computed from their definition."""
    panels = [(row, look, shared) for row, look in axis_diagrams.catalog_rows(norms) for shared in row.drawn]
    columns = min(max(len(panels), 1), 4)
    with house_style():
        height = math.ceil(len(panels) / columns) or 1
        figure = new_picture(2.2 * columns, 2.5 * height)
        grid = figure.subplots(height, columns, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
            axes.set_aspect("equal")
        for axes, (row, look, shared) in zip(grid.flat, panels, strict=False):
            axes.set_title(textwrap.fill(row.title, 24), size=10.5, weight="bold" if look.hero else "normal")
            _cube(axes, shared, row.of.symbols, look)
    return figure


def _over_x(result: Results, column: str, title: str) -> Figure:
    """One quantity of the finished cells over batch size, with a lane above for each kind of cell without a result."""
    table, x = result.table, result.x
    summary = result.summary
    looks = styles(list(dict.fromkeys(cell.norm for cell in result.cells)))
    marked = troubles(summary, x)
    tall = 4.4 + _LABEL * max(0, len(looks) - 12)
    figure = new_picture(7.2, tall + _LANE * len(marked))
    headings(figure, f"{title} over {X_NAMES[x]}", _subtitle(result, column))
    lanes, axes = figure.subplots(
        2, 1, sharex=True, height_ratios=[max(_LANE * len(marked), 0.01), tall - 1], gridspec_kw={"hspace": 0.02}
    )
    ends = []
    for index, (norm, look) in enumerate(looks.items()):
        cells = table[(table["norm"] == norm) & (table["status"] == "finished")]
        rows = summary[(summary["norm"] == norm) & (summary["finished"] > 0)].sort_values(x, ascending=False)
        if len(rows):
            _line(axes, look, rows, cells, x, column, dodge(index, len(looks)), result.metric)
            ends.append((float(rows[column].iloc[-1]), look))
    if len(table):
        power_axis(axes, settings(table, x), f"{X_NAMES[x]} ({result.task.sample}s)")
    shown = table.loc[table["status"] == "finished", column] if len(table) else pd.Series(dtype=float)
    if len(shown):
        intervals = summary.get(f"{column}_high", pd.Series(dtype=float))
        bottom = min(0.0, float(shown.min()) * 1.05)
        axes.set_ylim(bottom, max([float(shown.max()), *intervals.dropna()]) * 1.05 or 1)
    plain_axes(axes, log=False, percent=result.metric.is_percent and column == result.metric.key)
    _lanes(lanes, marked, looks, settings(table, x))
    set_layout(figure, w_pad=0.12)
    widest = max((len(look.label) for _, look in ends), default=0)
    axes.text(1, 0.5, "M" * max(3, round(widest * 0.8)), transform=axes.transAxes, size=10, alpha=0)  # keeps the margin
    end_labels(axes, ends)
    return figure


def _line(
    axes: Axes,
    look: Style,
    rows: pd.DataFrame,
    cells: pd.DataFrame,
    x: str,
    column: str,
    shift: float,
    metric: Metric,
) -> None:
    axes.scatter(cells[x] * shift, cells[column], s=16, color=look.color, alpha=0.38, linewidth=0, zorder=3)
    size = 8 if look.hero else 6.5
    axes.plot(rows[x] * shift, rows[column], marker=look.marker, markersize=size, markeredgewidth=0, **line_style(look))
    if f"{column}_low" in rows:
        lowest = None if metric.low is None else metric.low + 1e-3
        low, high = rows[f"{column}_low"].clip(lower=lowest), rows[f"{column}_high"].clip(upper=metric.high)
        axes.vlines(rows[x] * shift, low, high, color=look.color, linewidth=1.6, alpha=0.75, zorder=3)


def _lanes(axes: Axes, marked: Sequence[Trouble], looks: dict[str, Style], values: Sequence[int]) -> None:
    axes.set_axis_off()
    axes.set_ylim(max(len(marked), 1), 0)
    for lane, trouble in enumerate(marked):
        color = looks[trouble.norm].color
        axes.text(max(values) * 1.2, lane + 0.26, trouble.text, color=color, size=8.8, va="center")
        fill = "none" if trouble.status == "undefined" else color
        places = list(trouble.counts)
        mark = _MARKS[trouble.status]
        axes.scatter(
            places, [lane + 0.7] * len(places), s=34, marker=mark, facecolors=fill, edgecolors=color, linewidth=1.3
        )


def _curves(
    axes: Axes, look: Style, cells: pd.DataFrame, key: str, validation: pd.DataFrame, training: pd.DataFrame
) -> None:
    for _, cell in cells.groupby("cell", sort=False) if len(cells) else ():
        axes.plot(cell["epoch"], cell[key], color=look.color, linewidth=0.8, alpha=0.35)
    axes.plot(validation["epoch"], validation["mean"], **line_style(look))
    dotted = line_style(look) | {"linestyle": ":", "linewidth": 1.5}
    axes.plot(training["epoch"], training["mean"], **dotted)


def _cube(axes: Axes, shared: SharedSet, symbols: axis_diagrams.Names, look: Style) -> None:
    tiles = axis_diagrams.tiles(shared)
    for face, shade in _SHADES.items():
        for member in (False, True):
            corners = [tile.corners for tile in tiles if tile.face == face and tile.shared == member]
            color, alpha = (look.color, shade) if member else (INK, 0.16 - shade / 8)
            axes.add_collection(PolyCollection(corners, facecolor=color, alpha=alpha, edgecolor="none"))
    axes.add_collection(
        PolyCollection([t.corners for t in tiles], facecolor="none", edgecolor=INK, linewidth=0.6, alpha=0.55)
    )
    for text, place in axis_diagrams.axis_labels(symbols):
        axes.text(*place, text, size=9, ha="center", va="center", alpha=0.8)
    axes.autoscale_view()


def _only(rows: pd.DataFrame, norm: str, x: str, value: int) -> pd.DataFrame:
    return rows[(rows["norm"] == norm) & (rows[x] == value)] if len(rows) else rows


def _subtitle(result: Results, column: str) -> str:
    dataset = result.request.get("dataset") or {}
    cells = result.cells
    if not cells:
        return ""
    name = dataset.get("name") or cells[0].dataset
    size = f" at {cells[0].image_size}x{cells[0].image_size}" if cells[0].image_size else ""
    seeds = len({cell.seed for cell in cells})
    interval = f"mean with 95% interval, {seeds} seeds" if seeds > 1 else "one seed, no interval"
    shown = interval if column == result.metric.key else "median; each dot is a run"
    left = int(result.table["status"].isin(["pending", "running"]).sum())
    unfinished = f" · unfinished: {left} of {len(cells)} runs left" if left else ""
    return f"{name}{size} · {cells[0].model} · {shown}{unfinished}"
