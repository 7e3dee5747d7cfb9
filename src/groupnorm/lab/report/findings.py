"""What a result says, in plain sentences computed from the records; no sentence claims more than its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from groupnorm.lab.analysis import statistics
from groupnorm.lab.analysis.curves import X_NAMES, settings, troubles
from groupnorm.lab.analysis.labels import find_baseline, label
from groupnorm.lab.common.metric import ERROR, Metric

ENDED = ("finished", "undefined", "diverged", "crashed")


@dataclass(frozen=True)
class Findings:
    """The sentences at the top of a report.

    Attributes:
        headline: the main one.
        facts: what qualifies it.
        total, ended: number of cells asked for and of those that have ended.
    """

    headline: str
    facts: tuple[str, ...]
    total: int
    ended: int

    @property
    def unfinished(self) -> bool:
        """Whether cells are left to train."""
        return self.ended < self.total


def find(table: pd.DataFrame, x: str, metric: Metric = ERROR) -> Findings:
    """Compute the sentences.

    Args:
        table: :attr:`groupnorm.lab.analysis.results.Results.table`.
        x: :attr:`groupnorm.lab.analysis.results.Results.x`.
        metric: that they speak of.
    """
    total = len(table)
    ended = int(table["status"].isin(ENDED).sum()) if total else 0
    if not ended:
        return Findings("No run has ended yet", (f"{total} runs are planned.",), total, ended)
    norms = list(dict.fromkeys(table["norm"]))
    summary = statistics.summary(table, metric.key)
    facts: list[str] = []
    compared = _compare(table, x, metric, norms, facts)
    headline = compared or _alone(summary, x, metric, norms)
    facts += _trends(table, x, metric, norms)
    facts += [f"{trouble.text}." for trouble in troubles(summary, x)]
    return Findings(headline, tuple(facts), total, ended)


def points(value: float, digits: int = 1) -> str:
    """A difference of percentages as a number, with a real sign; zero has none."""
    text = f"{value:+.{digits}f}"
    return text.replace("-", "−") if text.strip("+-0.") else text[1:]


def digits_for(*values: float) -> int:
    """Decimals that keep small differences visible: two below ten, else one."""
    known = [abs(value) for value in values if not math.isnan(value)]
    return 2 if known and min(known) < 10 else 1


def resolved(row: Any) -> bool:
    """Whether the interval of a paired difference exists and leaves out zero."""
    return bool(row["difference_low"] < row["difference_high"]) and not (
        row["difference_low"] <= 0 <= row["difference_high"]
    )


def _compare(table: pd.DataFrame, x: str, metric: Metric, norms: Sequence[str], facts: list[str]) -> str:
    """The headline about the baseline and its rival, and the facts about the same two; "" without a pair."""
    baseline = find_baseline(norms)
    paired = statistics.differences(table, metric=metric.key)
    paired = paired[paired["pairs"] > 0]
    others = list(dict.fromkeys(paired["norm"]))
    if not others:
        return ""
    rival = "bn" if "bn" in others else others[0]
    rows = paired[paired["norm"] == rival].sort_values(x)
    first = rows.iloc[0]
    smallest = settings(table, x)[-1]
    failed = "" if first[x] == smallest else _failed(table, x, smallest, rival)
    names, seeds = (label(rival), label(str(baseline))), table["seed"].nunique()
    said = [
        f"{_sentence(row, x, metric, *names)}. {_interval_of(row, metric, *names, seeds)}" for _, row in rows.iterrows()
    ]
    if not failed:
        said[0] = _interval_of(first, metric, *names, seeds)
    facts += [said[0], *said[1:][-1:]]
    if not failed:
        return _sentence(first, x, metric, *names)
    reference = statistics.by_seed(table[(table["norm"] == baseline) & (table[x] == smallest)], metric.key)
    known = f", {names[1]}'s {metric.name} is {metric.text(reference.mean())}" if len(reference) else ""
    return f"At {X_NAMES[x]} {smallest} {failed}{known}"


def _sentence(row: Any, x: str, metric: Metric, rival: str, baseline: str) -> str:
    digits = 1 if abs(row["difference"]) >= 0.15 else 2
    own, reference = (metric.text(row[key], digits) for key in (metric.key, f"baseline_{metric.key}"))
    at = f"At {X_NAMES[x]} {row[x]}"
    if row["difference_low"] < row["difference_high"] and not resolved(row):
        return f"{at} {rival} ({own}) and {baseline} ({reference}) cannot be told apart"
    seed = " (one seed)" if row["pairs"] == 1 else ""
    return f"{at} {rival}'s {metric.name} is {own} and {baseline}'s {reference}{seed}"


def _interval_of(row: Any, metric: Metric, rival: str, baseline: str, seeds: int) -> str:
    if row["pairs"] == 1:
        return "With one seed there is no interval: the difference may be chance."
    low, high, mean = row["difference_low"], row["difference_high"], row["difference"]
    if low == high:
        each = f"{rival} minus {baseline} is {points(mean, 2)}{metric.of_differences} with each of {row['pairs']} seeds"
        return f"{each}: there is no spread to compute an interval from."
    digits = digits_for(mean, low, high)
    some = f"the {row['pairs']} of {seeds} seeds that finished" if row["pairs"] < seeds else f"{seeds} seeds"
    return (
        f"{rival} minus {baseline} is {points(mean, digits)}{metric.of_differences}, "
        f"95% interval {points(low, digits)} to {points(high, digits)}, paired over {some}."
    )


def _failed(table: pd.DataFrame, x: str, value: int, norm: str) -> str:
    cells = table[(table[x] == value) & (table["norm"] == norm)]
    statuses = set(cells["status"])
    if len(cells) and len(statuses) == 1 and statuses <= {"undefined", "diverged", "crashed"}:
        (status,) = statuses
        verb = "is undefined" if status == "undefined" else status
        seeds = "" if status == "undefined" else f" with every seed ({len(cells)})"
        return f"{label(norm)} {verb}{seeds}"
    return ""


def _alone(summary: pd.DataFrame, x: str, metric: Metric, norms: Sequence[str]) -> str:
    """The headline when no two norms can be compared."""
    finished = summary[summary["finished"] > 0]
    if not len(finished):
        return "No run finished with a result"
    baseline = find_baseline(norms)
    own = finished[finished["norm"] == baseline]
    row = (own if len(own) else finished).sort_values(x).iloc[0]
    return f"At {X_NAMES[x]} {row[x]} {label(row['norm'])}'s {metric.name} is {metric.text(row[metric.key])}"


def _trends(table: pd.DataFrame, x: str, metric: Metric, norms: Sequence[str]) -> list[str]:
    trends = statistics.trends(table, x, metric.key)
    trends = trends[(trends["pairs"] > 0) & (trends["largest"] > trends["smallest"])]
    parts: list[str] = []
    for norm in dict.fromkeys((find_baseline(norms) or "", "bn")):
        row = next((row for _, row in trends.iterrows() if row["norm"] == norm), None)
        if row is None:
            continue
        digits = digits_for(row["change"])
        change, low, high = (points(row[f"change{end}"], digits) for end in ("", "_low", "_high"))
        known = row["change_low"] < row["change_high"]
        if parts:
            parts.append(f"{label(norm)}'s by {change}" + (f" ({low} to {high})" if known else ""))
        else:
            interval = f" (95% interval {low} to {high})" if known else ""
            ends = f"From {X_NAMES[x]} {row['largest']} to {row['smallest']}"
            parts.append(f"{ends} {label(norm)}'s {metric.name} changes by {change}{metric.of_differences}{interval}")
    return [", ".join(parts) + "."] if parts else []
