"""Where each norm stands: one row a norm, from its error at the largest batch to that at the smallest."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from groupnorm.lab.analysis.curves import FAILURES, X_NAMES, settings, wants_log
from groupnorm.lab.common.metric import ERROR, Metric
from groupnorm.lab.plots.palette import styles
from groupnorm.lab.plots.style import INK, headings, house_style, new_picture

if TYPE_CHECKING:
    from groupnorm.lab.analysis.results import Results

_ROW = 0.27  # inches of height for each norm
_FAR = "#7a0000"
_QUIET = "#454c56"


def standings(result: Results) -> Figure:
    """Every norm ranked by its error at the smallest batch, with the way that its error took from the largest.

    Norms without a result there come last, with the reason. The bar is the 95% interval at the smallest batch.
    """
    summary, x, metric = result.summary, result.x, result.metric
    sizes = settings(result.table, x)
    looks = styles(list(dict.fromkeys(cell.norm for cell in result.cells)))
    order = ranking(summary, x, metric)
    with house_style():
        figure = new_picture(7.2, 1.5 + _ROW * max(len(order), 3))
        ends = f"from {X_NAMES[x]} {sizes[0]} to {sizes[-1]}" if len(sizes) > 1 else ""
        headings(figure, "Where each norm stands", f"validation {metric.name} {ends}, ranked at the smallest")
        axes = figure.subplots()
        worse = False
        for row, norm in enumerate(order):
            own = summary[summary["norm"] == norm].sort_values(x, ascending=False)
            worse |= _row(axes, row, own, x, sizes[-1], metric)
        _scale(axes, summary[metric.key] if len(summary) else [], metric)
        axes.set_yticks(range(len(order)), [looks[norm].label for norm in order])
        for tick, norm in zip(axes.get_yticklabels(), order, strict=True):
            if looks[norm].hero:
                tick.set_color(looks[norm].color)
                tick.set_fontweight("bold")
        axes.set_ylim(len(order) - 0.4, -0.6)
        if len(sizes) > 1:
            _legend(figure, x, sizes, worse)
    return figure


def ranking(summary: pd.DataFrame, x: str, metric: Metric = ERROR) -> list[str]:
    """The norms by their mean at the smallest ``x``, the best first; those without one last, in their order."""
    if not len(summary):
        return []
    smallest = summary[summary[x] == summary[x].min()].set_index("norm")[metric.key]
    sign = -1 if metric.higher_is_better else 1
    norms = list(dict.fromkeys(summary["norm"]))
    return sorted(
        norms, key=lambda norm: (math.isnan(smallest[norm]), 0 if math.isnan(smallest[norm]) else sign * smallest[norm])
    )


def _row(axes: Axes, row: int, own: pd.DataFrame, x: str, smallest: int, metric: Metric) -> bool:
    """Draw a norm; returns whether its error more than doubles."""
    key = metric.key
    known = own[own["finished"] > 0]
    doubles = len(known) > 1 and known[key].iloc[-1] > 2 * known[key].iloc[0]
    worse = bool(doubles) and not metric.higher_is_better
    color = _FAR if worse else INK
    if len(known):
        axes.plot(known[key], [row] * len(known), color=color, linewidth=1.6, alpha=0.35, zorder=2)
    for _, point in known.iterrows():
        last = point[x] == smallest
        axes.plot(
            point[key], row, "o", markersize=7 if last else 5, zorder=4 if last else 3,
            color=color if last else _QUIET, markerfacecolor=color if last else "none",
        )  # fmt: skip
        if last and not math.isnan(point[f"{key}_low"]):
            low, high = (point[f"{key}_{end}"] for end in ("low", "high"))
            low = low if metric.low is None else max(low, metric.low + 0.05)
            high = high if metric.high is None else min(high, metric.high)
            axes.hlines(row, low, high, color=color, linewidth=4, alpha=0.18, zorder=1)
    end = own[own[x] == smallest].iloc[0]
    failed = [f"{status} in {end[status]:.0f} of {end['cells']:.0f}" for status in FAILURES if end[status] > 0]
    if failed:
        axes.annotate(
            ", ".join(failed),
            (1, row),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="center",
            size=8.5,
            color=_FAR,
        )
    return worse


def _scale(axes: Axes, errors: Iterable[float], metric: Metric) -> None:
    """Vertical grid lines, and a logarithmic axis where the errors span more than it takes."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_alpha(0.5)
    axes.grid(axis="x", color=INK, alpha=0.13, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, pad=5)
    if wants_log(errors):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}{'%' * metric.is_percent}"))


def _legend(figure: Figure, x: str, sizes: Sequence[int], worse: bool) -> None:
    handles = [
        Line2D([], [], marker="o", linestyle="", markersize=5, color=_QUIET, markerfacecolor="none"),
        Line2D([], [], marker="o", linestyle="", markersize=7, color=INK),
        Line2D([], [], marker="o", linestyle="", markersize=7, color=_FAR),
    ]
    names = [f"{X_NAMES[x]} {sizes[0]}", f"{X_NAMES[x]} {sizes[-1]}", "more than twice the error at the largest"]
    shown = 3 if worse else 2
    figure.legend(
        handles[:shown], names[:shown], loc="outside lower left", ncols=3, frameon=False, borderaxespad=0.2, fontsize=9
    )
