"""What an experiment of the literature consists of: its question, its three scales, its picture and its claims."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from groupnorm.lab.experiments.framework.claim import Claim

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from groupnorm.lab.experiments.framework.evidence import Evidence

ScaleName = Literal["smoke", "small", "full"]
SCALES: tuple[str, ...] = get_args(ScaleName)
"""From seconds, over minutes on two cores, to the paper's own data, models, schedule and augmentation."""


def narrow(*norms: str) -> tuple[str, ...]:
    """The norms for a network of 16 to 128 channels, where GN's 32 groups would be instance norm in half the layers.

    8 groups, as the authors of group norm take for CIFAR's ResNets in tensorpack.
    """
    return tuple(f"{norm}:8" if norm in ("gn", "ws+gn") else norm for norm in norms)


@dataclass(frozen=True)
class Scale:
    """An experiment at one size.

    Attributes:
        arms: the comparisons that each part of it consists of, by a short name: options of
            :class:`groupnorm.lab.sweeps.configuration.Comparison`, all of whose cells are trained. The comparisons of
            an arm have the same data.
        last: the result of a run is the median over so many of its last epochs (5 in Wu & He 2018, section 4.1).
    """

    arms: Mapping[str, Sequence[Mapping[str, Any]]]
    last: int = 1


@dataclass(frozen=True)
class Experiment:
    """An experiment of the literature, to be run with ``groupnorm run NAME --scale small``.

    Attributes:
        name: what it is called on the command line.
        head: of its file, which tells for each scale, as ``- small: TIME; RESULT.``, how long it takes and what came
            out (at full scale, what the paper found).
        title: in a few words.
        question: what it answers.
        source: the paper, and the table or figure.
        smoke, small, full: the three scales.
        figure: draws the evidence.
        claims: what the literature says of it, and how that is measured.
    """

    name: str
    head: str
    title: str
    question: str
    source: str
    smoke: Scale
    small: Scale
    full: Scale
    figure: Callable[[Evidence], Figure]
    claims: tuple[Claim, ...] = field(default=())

    def scale(self, name: str) -> Scale:
        """The scale of this name: "smoke", "small" or "full"."""
        found: Scale = getattr(self, name)
        return found

    def expected(self, scale: str) -> tuple[str, str]:
        """Time and result of a scale, as the head tells; empty where Python leaves docstrings out (``-OO``)."""
        found = re.search(rf"^- {scale}: (.+?); (.+?)(?=^- |^$|\Z)", self.head, re.DOTALL | re.MULTILINE)
        time, result = (" ".join(part.split()) for part in found.groups()) if found else ("", "")
        return time, result
