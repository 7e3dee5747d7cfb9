"""What the template shows, as plain data: tables, cubes, notes, environment."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import pandas as pd
from markupsafe import Markup, escape

from groupnorm.lab.analysis import statistics
from groupnorm.lab.analysis.curves import settings
from groupnorm.lab.analysis.labels import find_baseline
from groupnorm.lab.analysis.results import Results
from groupnorm.lab.common.metric import Metric
from groupnorm.lab.plots import axis_diagrams
from groupnorm.lab.plots.palette import Style
from groupnorm.lab.report.findings import digits_for, points, resolved

Json = dict[str, Any]

_SORT = {
    status: rank for rank, status in enumerate(("crashed", "diverged", "undefined", "running", "pending", "finished"))
}


def tint(text: str, looks: dict[str, Style]) -> Markup:
    """A sentence as HTML in which each norm's name has its colour."""
    classes = {look.label: index for index, look in enumerate(looks.values())}
    text = text.replace("'", "’")
    names = "|".join(re.escape(name) for name in sorted(classes, key=len, reverse=True))
    if not names:
        return escape(text)
    pieces = re.split(rf"(?<![\w:])({names})(?!\w|:\w)", text)
    named = Markup('<b class="norm n{}">{}</b>')
    return Markup("").join(named.format(classes[p], p) if p in classes else escape(p) for p in pieces)


def matrix(result: Results, looks: dict[str, Style]) -> Json:
    """Norms by batch sizes: mean and interval of the error, and the paired difference to the baseline."""
    table, x = result.table, result.x
    columns = settings(table, x)
    means = {(row["norm"], row[x]): row for _, row in result.summary.iterrows()}
    pairs = {(row["norm"], row[x]): row for _, row in result.differences.iterrows()}
    rows = [
        {
            "norm": index,
            "baseline": norm == find_baseline(list(looks)),
            "cells": [_matrix_cell(means.get((norm, c)), pairs.get((norm, c)), result.metric) for c in columns],
        }
        for index, norm in enumerate(looks)
    ]
    return {"columns": columns, "rows": rows}


def comparisons(result: Results, looks: dict[str, Style]) -> list[Json]:
    """All paired differences with their p values."""
    order = {norm: index for index, norm in enumerate(looks)}
    rows = []
    for _, row in result.differences.iterrows():
        if row["pairs"]:
            values = (row["difference"], row["difference_low"], row["difference_high"])
            rows.append(
                {
                    "norm": order[row["norm"]],
                    "x": row[result.x],
                    "difference": points(values[0], 2),
                    "interval": _interval(*values[1:], 2),
                    "p": p_value(row["p"]),
                    "pairs": row["pairs"],
                    "resolved": resolved(row),
                }
            )
    return rows


def runs(result: Results, looks: dict[str, Style]) -> list[Json]:
    """Every cell, with what to show and what to sort by."""
    metric, order = result.metric, {norm: index for index, norm in enumerate(looks)}
    epochs = {cell.id: cell.epochs for cell in result.cells}
    rows = []
    for _, row in result.table.iterrows():
        status = "unfinished" if row["status"] == "running" else row["status"]
        shown = [
            (metric.key, _number(row[metric.key], 2)),
            (metric.train_key, _number(row[metric.train_key], 2)),
            ("epochs", f"{row['epochs']} of {epochs[row['cell']]}"),
            ("seconds", duration(row["seconds"])),
            (result.task.rate, _number(row[result.task.rate], 0)),
        ]
        rows.append(
            {
                "id": row["cell"],
                "norm": order[row["norm"]],
                "x": [int(row[column]) for column in statistics.SETTING],
                "seed": int(row["seed"]),
                "status": status,
                "rank": _SORT[row["status"]],
                "reason": row["reason"],
                "values": [(text, None if math.isnan(row[key]) else float(row[key])) for key, text in shown],
            }
        )
    return rows


def cards(norms: Iterable[str]) -> list[Json]:
    """The rows of the catalog that occur, each with its cubes."""
    return [
        {
            "row": row,
            "look": look,
            "cubes": [axis_diagrams.svg(shared, row.of.symbols, row.title) for shared in row.drawn],
        }
        for row, look in axis_diagrams.catalog_rows(norms)
    ]


def flatten(values: Any, prefix: str = "") -> dict[str, str]:
    """A nested dictionary as one of dotted names and texts."""
    if not isinstance(values, dict):
        text = ", ".join(map(str, values)) if isinstance(values, list | tuple) else str(values)
        return {prefix: "–" if values in (None, [], ()) else text}
    found: dict[str, str] = {}
    for key, value in values.items():
        found |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def environments(found: list[Json]) -> list[tuple[str, list[str]]]:
    """Each entry of the environment stamp, with its different values over the cells."""
    stamps = [flatten(stamp) for stamp in found]
    names = dict.fromkeys(name for stamp in stamps for name in stamp)
    return [(name, list(dict.fromkeys(stamp.get(name, "–") for stamp in stamps))) for name in names]


def p_value(p: float) -> str:
    """A p value as papers print it."""
    if math.isnan(p):
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def duration(seconds: float) -> str:
    """Seconds for a reader."""
    if math.isnan(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def _matrix_cell(mean: pd.Series | None, pair: pd.Series | None, metric: Metric) -> Json:
    if mean is None:
        return {"text": "–", "notes": []}
    seeds, done = int(mean["cells"]), int(mean["finished"])
    notes = [f"{mean[s]} {s}" for s in ("undefined", "diverged", "crashed") if mean[s]]
    left = int(mean["pending"] + mean["running"])
    notes += [f"{left} to come"] if left else []
    if not done:
        whole = next((s for s in ("undefined", "diverged", "crashed") if mean[s] == seeds), None)
        return {
            "text": whole or ("pending" if left == seeds else "–"),
            "notes": [] if whole or left == seeds else notes,
        }
    half = (mean[f"{metric.key}_high"] - mean[f"{metric.key}_low"]) / 2
    digits = digits_for(half)
    cell: Json = {
        "text": _number(mean[metric.key], digits),
        "half": "" if math.isnan(half) else f"± {half:.{digits}f}",
        "notes": [f"{done} of {seeds} seeds", *notes] if done < seeds else ["one seed"] if seeds == 1 else [],
    }
    if pair is not None and pair["pairs"]:
        digits = digits_for(pair["difference"])
        cell["difference"] = points(pair["difference"], digits)
        cell["interval"] = _interval(pair["difference_low"], pair["difference_high"], digits)
        cell["resolved"] = resolved(pair)
    return cell


def _interval(low: float, high: float, digits: int) -> str:
    return "" if math.isnan(low) else f"{points(low, digits)} to {points(high, digits)}"


def _number(value: float, digits: int) -> str:
    return "–" if math.isnan(value) else f"{value:,.{digits}f}"
