"""The cubes of the paper's Figure 2, computed from the definition: which elements share statistics with one."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from groupnorm.lab.palette import Style, styles
from groupnorm.nn.catalog import CATALOG, Norm
from groupnorm.sets import SharedSet

SHAPE = (6, 6, 6)
"""Samples, channels and positions of the cube: six channels, as the paper's Figure 2 shows two groups of three."""

Point = tuple[float, float]
_TILT = (math.cos(math.radians(30)), math.sin(math.radians(30)))


@dataclass(frozen=True)
class Tile:
    """The visible side of one element.

    Attributes:
        face: "top", "left" (channels and positions) or "right" (samples and positions).
        corners: on the page, with y upwards and the edge of one element as the unit.
        shared: whether the element is in the set of the element at the near upper corner.
    """

    face: str
    corners: tuple[Point, Point, Point, Point]
    shared: bool


def tiles(shared: SharedSet | None, shape: tuple[int, int, int] = SHAPE) -> list[Tile]:
    """The visible sides of a cube ``(N, C, H * W)``, with the set of one element marked.

    Args:
        shared: the set; None marks nothing.
        shape: samples, channels and positions.
    """
    n, c, p = shape
    top = p - 1
    marked = None
    if shared is not None:
        labels = shared.labels(shape)
        marked = labels == labels[0, 0, top]

    def tile(face: str, element: tuple[int, int, int], *corners: tuple[int, int, int]) -> Tile:
        first, second, third, fourth = (project(*corner) for corner in corners)
        return Tile(face, (first, second, third, fourth), marked is not None and bool(marked[element]))

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


def axis_labels(shape: tuple[int, int, int] = SHAPE) -> list[tuple[str, Point]]:
    """The names of the axes and where each is centred, as in the paper."""
    n, c, p = shape
    return [
        ("C", project(-0.9, c / 2, 0)),
        ("N", project(n / 2, -0.9, 0)),
        ("H, W", project(-0.8, c + 0.8, p / 2)),
    ]


def catalog_rows(norms: Iterable[str]) -> list[tuple[Norm, Style]]:
    """The rows of the catalog that these norms belong to, each once, with their look; unknown norms have none."""
    families = dict.fromkeys(norm.partition(":")[0] for norm in norms)
    rows = [CATALOG[family] for family in families if family in CATALOG]
    looks = styles([row.spec for row in rows])
    return [(row, looks[row.spec]) for row in rows]
