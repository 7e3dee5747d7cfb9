"""The house style of the static pictures: fonts, axes, labels at the ends of lines, files."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import matplotlib as mpl
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from groupnorm.lab.analysis.curves import spread
from groupnorm.lab.plots.palette import ON_DARK, Style

INK = "#1c2128"
DARK_INK = "#e6edf3"
_FONTS = ("Helvetica Neue", "Helvetica", "Arial", "Liberation Sans", "DejaVu Sans")
_DASHES: dict[str, Any] = {
    "solid": "-",
    "dash": (0, (4, 1.6)),
    "dashdot": (0, (4, 1.4, 1, 1.4)),
    "longdash": (0, (7, 2)),
}


class Picture(Figure):
    """A figure that a notebook shows without pyplot."""

    def _repr_png_(self) -> bytes:
        return encode(self, "png", dpi=110)


@contextmanager
def house_style() -> Iterator[None]:
    """The settings under which every picture is made and written."""
    installed = set(font_manager.get_font_names())
    settings: dict[str, Any] = {
        "font.family": [name for name in _FONTS if name in installed],
        "font.size": 10,
        "mathtext.default": "regular",
        "svg.hashsalt": "groupnorm",
        "svg.fonttype": "path",
        "path.simplify": False,
    }
    for key in ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"):
        settings[key] = INK
    with mpl.rc_context(cast(Any, settings)):
        yield


def new_picture(width: float, height: float) -> Figure:
    """An empty picture of this size in inches, which a caller fills within :func:`house_style`."""
    return Picture(figsize=(width, height), layout="constrained")


def headings(figure: Figure, title: str, subtitle: str = "") -> None:
    """A bold title and a quiet line below it, at the left edge."""
    inch = 1 / figure.get_figheight()
    figure.text(0.012, 1 - 0.09 * inch, title, size=13, weight="bold", va="top")
    figure.text(0.012, 1 - 0.35 * inch, subtitle, size=9.5, alpha=0.72, va="top")
    set_layout(figure, rect=(0, 0, 1, 1 - 0.62 * inch))


def set_layout(figure: Figure, **options: Any) -> None:
    """Options of the constrained layout: ``rect``, ``w_pad``, ..."""
    engine = figure.get_layout_engine()
    assert isinstance(engine, ConstrainedLayoutEngine)
    engine.set(**options)


def plain_axes(axes: Axes, *, log: bool, percent: bool, lowest: float = 0.0) -> None:
    """Horizontal grid lines only, readable numbers, no frame."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_alpha(0.5)
    axes.grid(axis="y", color=INK, alpha=0.13, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, pad=5)
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(bottom=lowest)
        axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}%" if percent else f"{value:,g}"))


def power_axis(axes: Axes, values: Sequence[int], name: str) -> None:
    """A base-two x axis that falls from left to right, with a tick at each value."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(values, [str(value) for value in values])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(max(values) * 1.25, min(values) / 1.25)
    axes.set_xlabel(name)


def end_labels(axes: Axes, ends: Sequence[tuple[float, Style]], gap_points: float = 13.5) -> None:
    """Write each norm's name right of the axes, at the height where its line ends, none over another.

    Args:
        axes: with its final limits.
        ends: last value and look of each line.
        gap_points: least distance of two names.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # fixes the layout, so that data have a place on the page
    points = 72 / figure.dpi
    places = [axes.transData.transform((1, value))[1] * points for value, _ in ends]
    bottom, top = (axes.transAxes.transform((0, y))[1] * points for y in (0, 1))
    for (_, style), place in zip(ends, spread(places, gap_points, bottom, top), strict=True):
        axes.annotate(
            style.label,
            (1, 0),
            xycoords="axes fraction",
            xytext=(4, place - bottom),
            textcoords="offset points",
            va="center",
            color=style.color,
            size=11 if style.hero else 10,
            weight="bold",
            annotation_clip=False,
            in_layout=False,
        )


def line_style(style: Style) -> dict[str, Any]:
    """Colour, width, dash and layer of a norm's line; the hero lies on top."""
    return {
        "color": style.color,
        "linewidth": style.width,
        "linestyle": _DASHES[style.dash],
        "zorder": 5 if style.hero else 4,
        "solid_capstyle": "round",
    }


def encode(figure: Figure, kind: str, dpi: int = 160) -> bytes:
    """The bytes of a picture file, the same for the same picture.

    Args:
        figure: what to write.
        kind: "png", on white; or "svg", transparent and readable on a light and a dark page.
        dpi: of the PNG.
    """
    file = io.BytesIO()
    with house_style():
        if kind == "png":
            figure.savefig(file, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
            return file.getvalue()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawn = file.getvalue().decode().replace(INK, "currentColor")
    dark = f"svg{{color:{DARK_INK}}}" + "".join(
        f'[style*="{part}: {light}"]{{{part}:{color}!important}}'
        for light, color in ON_DARK.items()
        for part in ("fill", "stroke")
        if f"{part}: {light}" in drawn
    )
    style = f"<style>svg{{color:{INK}}}@media(prefers-color-scheme:dark){{{dark}}}</style>"
    head, tag, body = drawn.partition("<defs>")
    return f"{head}{style}{tag}{body}".encode()
