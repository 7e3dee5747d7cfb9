"""The picture of a device's results: each case a dot, the losing ones on the wrong side of a line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator, PercentFormatter

from groupnorm.bench.cases import GRID_ACTIVATIONS, GRID_DTYPES, HUGE, LAYOUTS, SHAPES, Case, Shape
from groupnorm.bench.contenders import TORCH
from groupnorm.bench.judge import Entry, geometric_mean, measured
from groupnorm.bench.measure import BOTH, FORWARD, WARM
from groupnorm.bench.store import Results
from groupnorm.lab.plots.style import INK, headings, house_style, new_picture, set_layout

_COLORS = dict(zip(GRID_DTYPES, ("#0068b5", "#d1410c"), strict=True))  # of the palette: far apart in any vision
_LOSING = "#7a0000"
_WIDTH, _ROW = 8.6, 0.36  # inches of the picture, and of a shape in each panel
_NAMES = {FORWARD: "forward", BOTH: "forward + backward"}


class Dot(NamedTuple):
    """A case in one panel."""

    case: Case
    value: float


def draw(found: Results) -> Figure:
    """Above, how many times as fast as torch eager; below, what part of the copy's rate.

    Args:
        found: with at least one measured case.
    """
    every = measured(found)
    shapes = [shape for shape in (*SHAPES, HUGE) if any(case.shape == shape for case, _ in every)]
    with house_style():
        figure = new_picture(_WIDTH, 2 * (_ROW * len(shapes) + 0.95) + 1.2)
        headings(figure, "Group norm with its activation: how fast", _subtitle(found))
        grid = figure.subplots(2, 2, sharey=True)
        for column, phase in enumerate((FORWARD, BOTH)):
            speed = [Dot(c, e["timings"][phase]["ratios"][TORCH]) for c, e in every if phase in e["timings"]]
            _panel(grid[0][column], shapes, speed)
            _against_torch(grid[0][column], _NAMES[phase], speed)
            rates = [Dot(case, rate) for case, entry in every if (rate := _of_copy(entry, phase)) is not None]
            _panel(grid[1][column], shapes, rates)
            _against_copy(grid[1][column], _NAMES[phase], [dot.value for dot in rates])
        _legend(figure)
        set_layout(figure, w_pad=0.1, rect=(0, 0, 1, 1 - 0.85 / figure.get_figheight()))
    return figure


def _panel(axes: Axes, shapes: Sequence[Shape], dots: Sequence[Dot]) -> None:
    """The dots of each shape in its row: activations one below the other."""
    for dtype, color in _COLORS.items():
        for layout in LAYOUTS:
            some = [d for d in dots if (d.case.dtype, d.case.layout) == (dtype, layout)]
            axes.scatter(
                [dot.value for dot in some],
                [shapes.index(dot.case.shape) + _offset(dot.case) for dot in some],
                s=19,
                facecolors=color if layout == LAYOUTS[0] else "white",
                edgecolors=color,
                linewidth=1.1,
                alpha=0.9,
                zorder=3,
            )
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_alpha(0.5)
    axes.tick_params(length=0, pad=5)
    for row in range(0, len(shapes), 2):
        axes.axhspan(row - 0.5, row + 0.5, color=INK, alpha=0.035, linewidth=0)
    axes.set_ylim(len(shapes) - 0.5, -0.5)
    axes.yaxis.set_major_locator(FixedLocator(range(len(shapes))))
    axes.set_yticklabels([f"{shape.where}\n{'×'.join(map(str, shape.size))}" for shape in shapes], size=7.6)
    axes.set_axisbelow(True)


def _against_torch(axes: Axes, name: str, dots: Sequence[Dot]) -> None:
    ratios, judged = [dot.value for dot in dots], [dot.value for dot in dots if dot.case.shape != HUGE]
    axes.set_xscale("log")
    low, high = min([0.8, *ratios]) / 1.12, max([4.0, *ratios]) * 1.12
    axes.set_xlim(low, high)
    axes.axvspan(low, 1, color=_LOSING, alpha=0.07, linewidth=0)
    axes.axvline(1, color=_LOSING, linewidth=1.2, zorder=2)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axes.grid(axis="x", color=INK, alpha=0.13, linewidth=0.8)
    mean = geometric_mean(judged) if judged else None
    if mean is not None:
        axes.axvline(mean, color=INK, linewidth=1.2, linestyle=(0, (4, 2)), zorder=2)
    axes.set_title(name + (f" · mean {mean:.2f}×" if mean else ""), size=10.5, weight="bold", loc="left")
    axes.set_xlabel("times as fast as torch eager")


def _against_copy(axes: Axes, name: str, rates: Sequence[float]) -> None:
    axes.set_xlim(0, max([1.1, *rates]) * 1.04)
    axes.axvline(1, color=INK, linewidth=1.2, zorder=2)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(axis="x", color=INK, alpha=0.13, linewidth=0.8)
    axes.set_title(name, size=10.5, weight="bold", loc="left")
    axes.set_xlabel("bytes that must move, of those a copy moves\nin memory that is there")


def _of_copy(entry: Entry, phase: str) -> float | None:
    timings = entry["timings"]
    found: float | None = timings.get(phase + WARM, timings.get(phase, {})).get("of_copy")
    return found


def _offset(case: Case) -> float:
    place = GRID_ACTIVATIONS.index(case.activation) if case.activation in GRID_ACTIVATIONS else 1
    return (place - 1) * 0.26


def _legend(figure: Figure) -> None:
    handles = [
        Line2D([], [], linestyle="", marker="o", markersize=5.5, color=color, markerfacecolor=fill, label=label)
        for dtype, color in _COLORS.items()
        for fill, label in ((color, f"{dtype}, {LAYOUTS[0]}"), ("white", f"{dtype}, {LAYOUTS[1]}"))
    ]
    figure.legend(handles=handles, loc="outside lower left", ncols=4, frameon=False, borderaxespad=0.2)


def _subtitle(found: Results) -> str:
    facts = found.machine
    cpu = f" · {facts['threads']} threads, {facts['instructions']}" if "threads" in facts else ""
    how = "each dot is a case; in a row: no activation, ReLU, SiLU from top to bottom · dashed: geometric mean"
    return f"{facts['name']}{cpu}\n{how}"
