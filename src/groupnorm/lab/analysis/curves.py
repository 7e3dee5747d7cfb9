"""What the pictures draw, static or interactive: curves, marks of cells without a result, scales."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from groupnorm.lab.analysis.labels import label
from groupnorm.lab.analysis.statistics import SETTING

X_NAMES = {"batch_size": "batch size", "normalization_batch": "normalisation batch"}
"""The columns that a sweep varies, in words."""

LOG_RATIO = 10.0
"""An axis of errors is logarithmic when the largest is at least so many times the smallest."""

FAILURES = ("undefined", "diverged", "crashed")
"""How a cell can end without a result."""


@dataclass(frozen=True)
class Trouble:
    """Cells of one norm that ended without a result, all with the same status.

    Attributes:
        norm: spec.
        status: "undefined", "diverged" or "crashed".
        counts: for each x, how many of how many seeds.
        text: all that in words.
    """

    norm: str
    status: str
    counts: dict[int, tuple[int, int]]
    text: str


def troubles(summary: pd.DataFrame, x: str) -> list[Trouble]:
    """What has to be marked in a picture over ``x`` because it has no point there."""
    found = []
    for norm, rows in summary.groupby("norm", sort=False):
        for status in FAILURES:
            some = rows[rows[status] > 0]
            counts = {int(row[x]): (int(row[status]), int(row["cells"])) for _, row in some.iterrows()}
            if counts:
                why = ", one element per statistic" if status == "undefined" else ""
                text = f"{label(str(norm))}: {status}{_where(counts, len(rows), x)}{why}"
                found.append(Trouble(str(norm), status, counts, text))
    return found


def _where(counts: dict[int, tuple[int, int]], settings: int, x: str) -> str:
    whole = all(some == cells for some, cells in counts.values())
    at = "" if len(counts) == settings else f" at {X_NAMES[x]} {', '.join(map(str, counts))}"
    if whole:
        return at
    some, cells = (sum(numbers) for numbers in zip(*counts.values(), strict=True))
    return f" in {some} of {cells} runs{at}"


def mean_curves(curves: pd.DataFrame, column: str) -> pd.DataFrame:
    """The mean over seeds for each norm, setting and epoch.

    Only epochs that all started seeds have reached: where one stopped early, a mean over the others would jump.

    Args:
        curves: :attr:`groupnorm.lab.analysis.results.Results.curves`.
        column: "error" or "train_error".

    Returns:
        Columns: norm, batch_size, normalization_batch, epoch, mean, seeds.
    """
    names = ["norm", *SETTING, "epoch", "mean", "seeds"]
    if not len(curves):
        return pd.DataFrame(columns=names)
    cell = ["norm", *SETTING]
    found = curves.groupby([*cell, "epoch"], sort=False)[column].agg(["mean", "size"]).reset_index()
    started = curves.groupby(cell)["seed"].nunique().rename("started").reset_index()
    whole = found.merge(started, on=cell, how="left")
    whole = whole[whole["size"] == whole["started"]]
    return whole.drop(columns="started").rename(columns={"size": "seeds"})[names].reset_index(drop=True)


def settings(table: pd.DataFrame, x: str) -> list[int]:
    """The values of ``x`` in falling order, as the paper draws them."""
    return sorted({int(value) for value in table[x]}, reverse=True) if len(table) else []


def wants_log(errors: Iterable[float]) -> bool:
    """Whether these errors span so much that only a logarithmic axis shows them all."""
    found = [value for value in errors if not math.isnan(value)]
    return bool(found) and min(found) > 0 and max(found) / min(found) >= LOG_RATIO


def dodge(index: int, count: int) -> float:
    """A factor that moves the marks of one of ``count`` norms aside, by at most a tenth of an octave."""
    step = min(0.05, 0.2 / max(count - 1, 1))
    return float(2 ** (step * (index - (count - 1) / 2)))


def spread(positions: Sequence[float], gap: float, bottom: float = -math.inf, top: float = math.inf) -> list[float]:
    """Move labels apart until neighbours are at least ``gap`` apart, each as little as possible.

    Args:
        positions: where each label wants to be.
        gap: the least distance.
        bottom: no label goes below this while all have room above.
        top: no label goes above this.
    """
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    clusters: list[tuple[float, list[int]]] = []  # centre and members, merged while they overlap
    for i in order:
        clusters.append((positions[i], [i]))
        while len(clusters) > 1 and _overlap(clusters[-2], clusters[-1], gap):
            (_, low), (_, high) = clusters[-2:]
            members = low + high
            clusters[-2:] = [(sum(positions[j] for j in members) / len(members), members)]
    found = list(positions)
    for centre, members in clusters:
        for rank, i in enumerate(members):
            found[i] = centre + gap * (rank - (len(members) - 1) / 2)
    for rank, i in enumerate(order):
        found[i] = max(found[i], bottom + gap * rank)
    for rank, i in enumerate(reversed(order)):
        found[i] = min(found[i], top - gap * rank)
    return found


def _overlap(low: tuple[float, list[int]], high: tuple[float, list[int]], gap: float) -> bool:
    return high[0] - low[0] < gap * (len(low[1]) + len(high[1])) / 2
