"""The cubes of the paper's Figure 2, computed from the definition: which elements share statistics with one."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

from groupnorm.errors import ArgumentError
from groupnorm.lab.plots.palette import Style, styles
from groupnorm.nn.catalog import CATALOG
from groupnorm.nn.norm import FEATURES, Norm
from groupnorm.nn.own import is_own, own_row
from groupnorm.sets import SharedSet

SHAPE = (6, 6, 6)
"""Samples, channels and positions of the cube: six channels, as the paper's Figure 2 shows two groups of three."""

Point = tuple[float, float]
Names = tuple[str, str, str]
_TILT = (math.cos(math.radians(30)), math.sin(math.radians(30)))


@dataclass(frozen=True)
class Tile:
    """The visible side of one element.

    Attributes:
        face: "top", "left" (channels and positions) or "right" (samples and positions).
        corners: on the page, with y upwards and the edge of one element as the unit.
        shared: whether the element is in the set of the one at the near upper corner; a window is that of a middle one.
    """

    face: str
    corners: tuple[Point, Point, Point, Point]
    shared: bool


def tiles(shared: SharedSet, shape: tuple[int, int, int] = SHAPE) -> list[Tile]:
    """The visible sides of a cube ``(N, C, H * W)``, with the set of one element marked.

    Args:
        shared: the set.
        shape: samples, channels and positions.
    """
    n, c, p = shape
    top = p - 1
    marked = shared.members(shape, (0, c // 2, p // 2) if shared.windows else (0, 0, top))

    def tile(face: str, element: tuple[int, int, int], *corners: tuple[int, int, int]) -> Tile:
        first, second, third, fourth = (project(*corner) for corner in corners)
        return Tile(face, (first, second, third, fourth), bool(marked[element]))

    found = [
        tile("left", (0, j, k), (0, j, k), (0, j + 1, k), (0, j + 1, k + 1), (0, j, k + 1))
        for j in range(c)
        for k in range(p)
    ]
    found += [
        tile("right", (i, 0, k), (i, 0, k), (i + 1, 0, k), (i + 1, 0, k + 1), (i, 0, k + 1))
        for i in range(n)
        for k in range(p)
    ]
    found += [
        tile("top", (i, j, top), (i, j, p), (i + 1, j, p), (i + 1, j + 1, p), (i, j + 1, p))
        for i in range(n)
        for j in range(c)
    ]
    return found


def project(sample: float, channel: float, position: float) -> Point:
    """Where a corner lies on the page: isometric, samples to the right, channels to the left, positions upwards."""
    return (sample - channel) * _TILT[0], (sample + channel) * _TILT[1] + position


def axis_labels(symbols: Names = FEATURES.symbols) -> list[tuple[str, Point]]:
    """The names of the axes and where each is centred, as in the paper."""
    n, c, p = SHAPE
    first, second, third = symbols
    return [
        (second, project(-0.9, c / 2, 0)),
        (first, project(n / 2, -0.9, 0)),
        (third, project(-0.8, c + 0.8, p / 2)),
    ]


def svg(shared: SharedSet, symbols: Names = FEATURES.symbols, title: str = "") -> str:
    """The cube as an SVG element of class ``cube``; a style sheet colours ``.top``, ``.left``, ``.right``, ``.shared``.

    Args:
        shared: the set.
        symbols: what the axes are called.
        title: read to those who do not see it.
    """
    left, right = project(0, SHAPE[1], 0)[0], project(SHAPE[0], 0, 0)[0]
    top = project(*SHAPE)[1]
    box = f"{left - 2.3:.2f} {-top - 0.2:.2f} {right - left + 4.6:.2f} {top + 0.9:.2f}"
    parts = [f'<svg class="cube" viewBox="{box}" role="img" aria-label="{escape(title)}">']
    faces = tiles(shared)
    for face in ("top", "left", "right"):
        for member in (False, True):
            outlines = [tile.corners for tile in faces if tile.face == face and tile.shared == member]
            if outlines:
                path = "".join("M" + "L".join(f"{x:.2f} {-y:.2f}" for x, y in corners) + "Z" for corners in outlines)
                parts.append(f'<path class="{face}{" shared" if member else ""}" d="{path}"/>')
    parts += [f'<text x="{x:.2f}" y="{-y:.2f}">{escape(text)}</text>' for text, (x, y) in axis_labels(symbols)]
    return "".join(parts) + "</svg>"


def catalog_rows(norms: Iterable[str]) -> list[tuple[Norm, Style]]:
    """The rows of the catalog that these norms belong to, each once, with their look, and those of the user's own.

    "ws+gn" belongs to two.
    """
    parts = [part for norm in norms for part in norm.split("+")]
    families = dict.fromkeys(part if is_own(part) else part.partition(":")[0] for part in parts)
    rows = [own_row(family) if is_own(family) else CATALOG[family] for family in families if _is_known(family)]
    looks = styles([row.spec for row in rows])
    return [(row, looks[row.spec]) for row in rows]


def _is_known(family: str) -> bool:
    """Whether there is a row; the file of a norm of the user's own may be gone since its run."""
    try:
        return family in CATALOG or bool(is_own(family) and own_row(family).drawn)
    except ArgumentError:
        return False
