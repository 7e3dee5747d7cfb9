"""How a norm looks, the same in every picture: colour, marker, dash and name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

from groupnorm.lab.analysis.labels import find_baseline, label


@dataclass(frozen=True)
class Style:
    """The look of one norm.

    Attributes:
        label: its name in a picture.
        color: on a light background; has a contrast of at least 4.5 to white.
        dark: on a dark background.
        marker: of matplotlib.
        symbol: the same marker in Plotly.
        dash: of the line.
        hero: whether the norm is the one that the others are compared with; its line is the heaviest.
    """

    label: str
    color: str
    dark: str
    marker: str
    symbol: str
    dash: str
    hero: bool

    @property
    def width(self) -> float:
        """Line width in points."""
        return 3.2 if self.hero else 1.9


# Far apart in normal, protan, deutan and tritan vision; red and blue as in the paper's Figure 1.
_HERO = ("#d1410c", "#ff7d3c", "o", "circle")
_KNOWN = {
    "bn": ("#0068b5", "#58aef8", "s", "square"),
    "ln": ("#00856f", "#2fc79c", "^", "triangle-up"),
    "in": ("#93328c", "#e9a3dc", "D", "diamond"),
    "none": ("#454c56", "#8d96a0", "v", "triangle-down"),
}
_OTHERS = (
    ("#8a2be2", "#b27bff", "P", "cross", "dash"),
    ("#7a0000", "#ff5c7a", "<", "triangle-left", "dashdot"),
    ("#7a7338", "#e6e04d", "p", "pentagon", "longdash"),
    ("#1f4d1f", "#b6f2a8", ">", "triangle-right", "dash"),
    ("#9a6200", "#ffb020", "h", "hexagon", "dashdot"),
    ("#007f9e", "#66ecdf", "*", "star", "longdash"),
    ("#34119e", "#c9c2ff", "8", "octagon", "dash"),
    ("#664433", "#b98a6a", "d", "diamond-tall", "dashdot"),
)

ON_DARK: dict[str, str] = {look[0]: look[1] for look in (_HERO, *_KNOWN.values(), *_OTHERS)}
"""For the colour of each norm on a light background, that on a dark one."""


def _others() -> Iterator[tuple[str, str, str, str, str]]:
    """Looks without end: each round through the colours goes on to the next marker and dash, so none repeats soon."""
    for shift in count():
        shapes = _OTHERS[shift % len(_OTHERS) :] + _OTHERS[: shift % len(_OTHERS)]
        for (color, dark, _, _, _), (_, _, marker, symbol, dash) in zip(_OTHERS, shapes, strict=True):
            yield color, dark, marker, symbol, dash


def styles(norms: Sequence[str]) -> dict[str, Style]:
    """The look of each norm of a comparison.

    Args:
        norms: specs; the known ones always look the same, the others take what is left in this order.
    """
    hero = find_baseline(norms)
    found: dict[str, Style] = {}
    others = _others()
    for norm in norms:
        if norm in _KNOWN:
            found[norm] = Style(label(norm), *_KNOWN[norm], dash="solid", hero=norm == hero)
        elif norm == hero:
            found[norm] = Style(label(norm), *_HERO, dash="solid", hero=True)
        else:
            found[norm] = Style(label(norm), *next(others), hero=False)
    return found
