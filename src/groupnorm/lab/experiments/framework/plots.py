"""The forms in which experiments show their evidence: over a quantity, by epoch, or ranked; a panel for each part."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from groupnorm.lab.analysis.curves import dodge, wants_log
from groupnorm.lab.analysis.statistics import Estimate, estimate
from groupnorm.lab.experiments.framework.evidence import Evidence
from groupnorm.lab.plots.palette import Style, styles
from groupnorm.lab.plots.style import headings, line_style, new_picture, plain_axes

Panels = dict[str, pd.DataFrame]
"""What each panel shows, by its title."""

_WIDTH, _HEIGHT = 3.7, 3.1  # inches of a panel
_ROW = 0.26  # of a row in a ranking
_COLUMNS = 3


def by(rows: pd.DataFrame, column: str, title: Callable[[Any], str] = str) -> Panels:
    """A panel for each value of a column, in the order of the rows."""
    return {title(value): rows[rows[column] == value] for value in rows[column].drop_duplicates()}


def over(
    evidence: Evidence,
    x: str,
    panels: Panels,
    *,
    title: str,
    x_name: str | Mapping[str, str],
    y: str = "error",
    y_name: str = "validation error (%)",
    lines: str = "family",
    falling: bool = False,
    log_x: bool | Collection[str] = True,
) -> Figure:
    """A measure over a quantity: mean and 95% interval over seeds, a line for each norm.

    Args:
        evidence: for the line below the title.
        x: column of the quantity; its values are the ticks.
        panels: rows of :attr:`Evidence.table`.
        title: of the picture.
        x_name: of the quantity, or its name in each panel by the panel's title.
        y: column of the measure.
        y_name: of the measure, with its unit.
        lines: column that tells lines apart.
        falling: x falls from left to right, as in Wu & He 2018, Figure 1.
        log_x: x is on a logarithmic scale, in all panels, or in those of these titles.
    """
    figure, grid, looks = _panels(evidence, panels, title, lines)
    for axes, (name, rows) in zip(grid, panels.items(), strict=False):
        axes.set_title(name, size=10, loc="left")
        drawn = list(rows[lines].drop_duplicates())
        logarithmic = log_x if isinstance(log_x, bool) else name in log_x
        for line in drawn:
            own = rows[rows[lines] == line]
            shift = dodge(drawn.index(line), len(drawn)) if logarithmic else 1.0
            points = {float(value): estimate(own.loc[own[x] == value, y]) for value in sorted(own[x].unique())}
            _intervals(axes, [(value * shift, found) for value, found in points.items()], looks[line])
        ticks = sorted(rows[x].unique())
        if logarithmic:
            axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        if falling:
            axes.invert_xaxis()
        axes.set_xlabel(x_name if isinstance(x_name, str) else x_name[name])
        axes.set_ylabel(y_name)
        plain_axes(axes, log=wants_log(rows[y]), percent=False)
    return figure


def by_epoch(
    evidence: Evidence,
    measures: dict[str, str],
    panels: Panels,
    *,
    title: str,
    y_name: str = "error (%)",
    lines: str = "family",
    log: bool | None = None,
) -> Figure:
    """Measures by epoch: the mean over seeds, each measure in its own stroke.

    Args:
        evidence: for the line below the title.
        measures: name of each measure by its column; at most four.
        panels: rows of :attr:`Evidence.curves`.
        title: of the picture.
        y_name: what the measures are, with their unit.
        lines: column that tells colours apart.
        log: y is on a logarithmic scale; None chooses by the values.
    """
    strokes: list[Any] = ["-", ":", "--", "-."]
    figure, grid, looks = _panels(evidence, panels, title, lines, intervals=False)
    for axes, (name, rows) in zip(grid, panels.items(), strict=False):
        axes.set_title(name, size=10, loc="left")
        for line in rows[lines].drop_duplicates():
            for stroke, column in zip(strokes, measures, strict=False):
                means = rows[rows[lines] == line].groupby("epoch")[column].mean()
                style = line_style(looks[line]) | {"linestyle": stroke, "linewidth": 1.8}
                axes.plot(means.index, means.to_numpy(), marker="o" if len(means) == 1 else "", **style)
        values = [value for column in measures for value in rows[column]]
        lowest = min([0.0, *(value for value in values if not math.isnan(value))])
        plain_axes(axes, log=wants_log(values) if log is None else log, percent=False, lowest=lowest)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlabel("epoch")
        axes.set_ylabel(y_name)
    if len(measures) > 1:
        names = zip(strokes, measures.values(), strict=False)
        handles = [Line2D([], [], color="#454c56", linestyle=stroke, label=label) for stroke, label in names]
        figure.legend(handles=handles, loc="outside lower right", ncols=2, frameon=False)
    return figure


def ranked(
    evidence: Evidence,
    panels: Panels,
    *,
    title: str,
    y: str = "error",
    y_name: str = "validation error (%)",
    lines: str = "family",
) -> Figure:
    """A measure of each norm, best first within a panel: mean, 95% interval and each seed."""
    figure, grid, looks = _panels(evidence, panels, title, lines, legend=False)
    for axes, (name, rows) in zip(grid, panels.items(), strict=False):
        axes.set_title(name, size=10, loc="left")
        means = rows.groupby(lines, sort=False)[y].mean().sort_values()
        for place, line in enumerate(means.index):
            values = rows.loc[rows[lines] == line, y].dropna()
            found, color = estimate(values), looks[line].color
            axes.scatter(values, [place] * len(values), s=14, color=color, alpha=0.4, linewidth=0)
            if not found.n:
                axes.text(0.02, place, "no result", transform=axes.get_yaxis_transform(), size=9, va="center")
                continue
            axes.scatter([found.mean], [place], s=44, color=color, marker=looks[line].marker, zorder=4)
            axes.hlines(place, max(found.low, 0.0), found.high, color=color, linewidth=1.8, alpha=0.75)
        plain_axes(axes, log=False, percent=False)
        axes.grid(visible=False, axis="y")
        axes.grid(visible=True, axis="x", alpha=0.13)
        axes.yaxis.set_major_locator(FixedLocator(range(len(means))))
        axes.set_yticklabels([looks[line].label for line in means.index])
        axes.set_ylim(len(means) - 0.4, -0.6)
        if wants_log(rows[y].dropna()):
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel(y_name)
    return figure


def _panels(
    evidence: Evidence, panels: Panels, title: str, lines: str, *, legend: bool = True, intervals: bool = True
) -> tuple[Figure, list[Axes], dict[Any, Style]]:
    columns = 2 if len(panels) == 4 else max(1, min(len(panels), _COLUMNS))
    rows = math.ceil(len(panels) / columns) or 1
    names = list(dict.fromkeys(name for part in panels.values() for name in part[lines]))
    height = _HEIGHT if legend else max(1.2 + _ROW * len(names), 1.8)
    figure = new_picture(max(_WIDTH * columns, 6.2), height * rows + 1.1)
    headings(figure, title, _subtitle(evidence, intervals))
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    looks = dict(zip(names, styles([str(name) for name in names]).values(), strict=True))
    if legend:
        handles = [Line2D([], [], label=look.label, marker=look.marker, **line_style(look)) for look in looks.values()]
        figure.legend(handles=handles, loc="outside lower left", ncols=6, frameon=False, borderaxespad=0.2)
    return figure, grid, looks


def _intervals(axes: Axes, points: Sequence[tuple[float, Estimate]], look: Style) -> None:
    shown = [(x, found) for x, found in points if found.n]
    xs = [x for x, _ in shown]
    axes.plot(xs, [found.mean for _, found in shown], marker=look.marker, markersize=5.5, **line_style(look))
    bounds = [(max(found.low, 0.0), found.high) for _, found in shown]
    axes.vlines(xs, [low for low, _ in bounds], [high for _, high in bounds], color=look.color, alpha=0.7, zorder=3)


def _subtitle(evidence: Evidence, intervals: bool) -> str:
    datasets = list(dict.fromkeys(arm["dataset"].rpartition(":")[2] for arm in evidence.head["arms"].values()))
    models = list(dict.fromkeys(arm["model"].rpartition(":")[2] for arm in evidence.head["arms"].values()))
    seeds = evidence.table["seed"].nunique()
    return f"{', '.join(datasets)} · {', '.join(models)} · {seeds} seeds, mean{' with 95% interval' * intervals}"
