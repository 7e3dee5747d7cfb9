"""Means, intervals over seeds and paired differences. No plotting."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, get_args

import pandas as pd
from scipy import stats

from groupnorm.errors import UnknownNameError
from groupnorm.lab.analysis.labels import find_baseline
from groupnorm.lab.common.trial import Status

CONFIDENCE = 0.95
STATUSES: tuple[str, ...] = get_args(Status)
SETTING = ["batch_size", "normalization_batch"]
"""What identifies the cells of a norm that differ in nothing but the seed."""

_ROUNDING = 1e-12  # a spread below this part of the values is rounding of the subtraction, not variance


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and its Student t interval.

    Attributes:
        n: number of values.
        mean: their mean; NaN of none.
        low, high: the 95% interval; NaN of fewer than two values.
        std: standard deviation with n - 1; NaN of fewer than two values.
        p: two-sided p value of the hypothesis that the true mean is zero; NaN of fewer than two values. When all
            values are equal it is NaN too, since a t test needs a spread, and the interval is a point.
    """

    n: int
    mean: float
    low: float
    high: float
    std: float
    p: float


def estimate(values: Iterable[float]) -> Estimate:
    """Mean, 95% t interval and t test against zero of independent values; NaN is left out."""
    found = [float(value) for value in values if not math.isnan(value)]
    n = len(found)
    mean = math.fsum(found) / n if n else math.nan
    if n < 2:
        return Estimate(n, mean, math.nan, math.nan, math.nan, math.nan)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in found) / (n - 1))
    if std <= _ROUNDING * max(abs(value) for value in found):
        return Estimate(n, mean, mean, mean, 0.0, math.nan)
    error = std / math.sqrt(n)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * error
    return Estimate(n, mean, mean - half, mean + half, std, 2 * float(stats.t.sf(abs(mean) / error, n - 1)))


def summary(table: pd.DataFrame, metric: str = "error") -> pd.DataFrame:
    """One row per norm and setting, in the order of the request.

    A cell that did not finish has no error, and is counted in the column of its status instead.

    Args:
        table: :attr:`groupnorm.lab.analysis.results.Results.table`.
        metric: the column to average, in place of "error" below.

    Returns:
        Columns: norm, batch_size, normalization_batch; cells, and their number with each status; reason (of those
        that did not finish); error, error_low, error_high, error_std; train_error, train_error_low,
        train_error_high; seconds and images_per_second (medians of the finished cells).
    """
    rows: list[dict[str, Any]] = []
    rate = next((str(column) for column in table if str(column).endswith("_per_second")), "images_per_second")
    for keys, cells in _groups(table):
        finished = cells[cells["status"] == "finished"]
        error, train_error = estimate(finished[metric]), estimate(finished[f"train_{metric}"])
        counts = {status: int((cells["status"] == status).sum()) for status in STATUSES}
        reasons = dict.fromkeys(str(reason) for reason in cells["reason"] if reason)
        rows.append(
            keys
            | {"cells": len(cells), **counts, "reason": "; ".join(reasons)}
            | _named(metric, error)
            | {f"{metric}_std": error.std}
            | _named(f"train_{metric}", train_error)
            | {column: float(finished[column].median()) for column in ("seconds", rate)}
        )
    columns = ["norm", *SETTING, "cells", *STATUSES, "reason", *_named(metric, estimate([])), f"{metric}_std"]
    columns += [*_named(f"train_{metric}", estimate([])), "seconds", rate]
    return pd.DataFrame(rows, columns=columns)


def differences(table: pd.DataFrame, baseline: str | None = None, *, metric: str = "error") -> pd.DataFrame:
    """The error of each norm minus that of the baseline, paired by seed at the same setting.

    Only pairs of which both cells finished count; the p values are not corrected for the number of comparisons.

    Args:
        table: :attr:`groupnorm.lab.analysis.results.Results.table`.
        baseline: the norm to compare with. Default: the first of the GN family, else the first.
        metric: the column to compare, in place of "error" below. Default: "error".

    Returns:
        One row per other norm and setting: norm, batch_size, normalization_batch, baseline, pairs, error and
        baseline_error (means over the pairs), difference, difference_low, difference_high (95% paired t), p.

    Raises:
        UnknownNameError: no cell has the baseline.
    """
    norms = list(dict.fromkeys(table["norm"])) if len(table) else []
    if baseline is None:
        baseline = find_baseline(norms)
    elif baseline not in norms:
        raise UnknownNameError("baseline", baseline, norms)
    columns = ["norm", *SETTING, "baseline", "pairs", metric, f"baseline_{metric}"]
    columns += [*_named("difference", estimate([])), "p"]
    groups = {tuple(keys.values()): by_seed(cells, metric) for keys, cells in _groups(table)}
    rows = []
    for (norm, *setting), errors in groups.items():
        if norm == baseline:
            continue
        reference = groups.get((baseline, *setting), pd.Series(dtype=float))
        pairs = pd.DataFrame({"own": errors, "reference": reference}).dropna()
        found = estimate(pairs["own"] - pairs["reference"])
        means = (pairs["own"].mean(), pairs["reference"].mean())
        values = (found.mean, found.low, found.high, found.p)
        rows.append((norm, *setting, baseline, found.n, *means, *values))
    return pd.DataFrame(rows, columns=columns)


def trends(table: pd.DataFrame, x: str, metric: str = "error") -> pd.DataFrame:
    """How the error of each norm changes from the largest to the smallest value of ``x``, paired by seed.

    Args:
        table: :attr:`groupnorm.lab.analysis.results.Results.table`.
        x: :attr:`groupnorm.lab.analysis.results.Results.x`.
        metric: the column that changes.

    Returns:
        One row per norm: norm, largest, smallest, pairs, change, change_low, change_high (95% paired t).
    """
    rows = []
    if len(table):
        largest, smallest = table[x].max(), table[x].min()
        for norm, cells in table.groupby("norm", sort=False):
            ends = [by_seed(cells[cells[x] == end], metric) for end in (largest, smallest)]
            found = estimate((ends[1] - ends[0]).dropna())
            rows.append((norm, int(largest), int(smallest), found.n, found.mean, found.low, found.high))
    columns = ["norm", "largest", "smallest", "pairs", *_named("change", estimate([]))]
    return pd.DataFrame(rows, columns=columns)


def by_seed(cells: pd.DataFrame, metric: str = "error") -> pd.Series[float]:
    """The metric of the finished cells, by seed."""
    finished = cells[cells["status"] == "finished"]
    return pd.Series(finished[metric].to_numpy(), index=finished["seed"].to_numpy(), dtype=float)


def _groups(table: pd.DataFrame) -> Iterable[tuple[dict[str, Any], pd.DataFrame]]:
    if not len(table):
        return
    for keys, cells in table.groupby(["norm", *SETTING], sort=False):
        yield dict(zip(["norm", *SETTING], keys, strict=True)), cells


def _named(name: str, found: Estimate) -> dict[str, float]:
    return {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}
