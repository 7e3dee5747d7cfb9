"""The interactive charts as data: traces without colours, which the page's script adds for its light or dark theme."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import pandas as pd

from groupnorm.lab.analysis.curves import X_NAMES, Trouble, dodge, mean_curves, settings, troubles
from groupnorm.lab.analysis.results import Results
from groupnorm.lab.common.metric import Metric
from groupnorm.lab.plots.palette import Style

Json = dict[str, Any]

LANE = 34
"""Height in pixels of a line of marks without a result."""

MANY = 12
"""With more norms than this a chart is higher, for their names, and learning curves are the means alone."""

_MARKS = {"undefined": "circle-open", "diverged": "x", "crashed": "square"}


def error_chart(result: Results, looks: dict[str, Style]) -> Json:
    """Validation error over batch size: seeds, means, intervals, and lanes for cells without a result."""
    table, x, metric = result.table, result.x, result.metric
    key, summary = metric.key, result.summary
    traces: list[Json] = []
    for index, (norm, look) in enumerate(looks.items()):
        shift = dodge(index, len(looks))
        cells = _finished(table, norm)
        texts = [f"seed {seed}" for seed in cells["seed"]]
        traces.append(_dots(norm, look, cells, x, key, texts, shift))
        rows = summary[(summary["norm"] == norm) & (summary["finished"] > 0)].sort_values(x, ascending=False)
        line = _line(norm, look, rows[x], rows[key], [_mean_text(row, metric) for _, row in rows.iterrows()], shift)
        line["error_y"] = {
            "type": "data",
            "symmetric": False,
            "array": numbers(rows[f"{key}_high"].clip(upper=metric.high) - rows[key]),
            "arrayminus": numbers(rows[key] - rows[f"{key}_low"].clip(lower=metric.low)),
            "thickness": 2,
            "width": 0,
        }
        traces.append(line)
    marked = troubles(summary, x)
    values = settings(table, x)
    for lane, trouble in enumerate(marked):
        traces += _lane(trouble, lane, values)
    about = f"Validation {metric.in_unit} over {X_NAMES[x]}"
    height = 420 + 15 * max(0, len(looks) - MANY)
    chart = _over_x("error", about, values, traces, result, height=height, lanes=len(marked))
    return chart | {"log": True, "percent": metric.is_percent}


def speed_chart(result: Results, looks: dict[str, Style], column: str, about: str) -> Json:
    """Throughput or training time over batch size: a dot for each finished cell, a line through the medians.

    Args:
        result: the result.
        looks: of each norm.
        column: of the table.
        about: the chart in words, with its unit.
    """
    table, x = result.table, result.x
    traces: list[Json] = []
    for index, (norm, look) in enumerate(looks.items()):
        shift = dodge(index, len(looks))
        cells = _finished(table, norm)
        traces.append(_dots(norm, look, cells, x, column, [f"seed {seed}" for seed in cells["seed"]], shift))
        medians = cells.groupby(x)[column].median().sort_index(ascending=False)
        texts = [f"median {value:,.4g}" for value in medians]
        traces.append(_line(norm, look, medians.index, medians, texts, shift))
    return _over_x(column, about, settings(table, x), traces, result, height=320)


def curve_charts(result: Results, looks: dict[str, Style]) -> list[Json]:
    """Learning curves, a chart for each batch size: each seed's validation error, and the means of both errors."""
    table, curves, x, metric = result.table, result.curves, result.x, result.metric
    means = {column: mean_curves(curves, column) for column in (metric.key, metric.train_key)}
    roles = ((metric.key, "curve"), (metric.train_key, "train-curve"))
    charts = []
    for value in settings(table, x):
        traces: list[Json] = []
        missing: dict[str, list[str]] = {}
        for norm, look in looks.items():
            own = _at(curves, norm, x, value)
            cells = _at(table, norm, x, value)
            if not len(own):
                for status in dict.fromkeys(cells["status"]):
                    missing.setdefault(status, []).append(look.label)
            for _, cell in own.groupby("cell", sort=False) if len(own) and len(looks) <= MANY else ():
                texts = [f"seed {cell['seed'].iloc[0]}, validation"] * len(cell)
                traces.append(_curve(norm, look, "seed-curve", cell["epoch"], cell[metric.key], texts))
            for column, role in roles[: 1 if len(looks) > MANY else 2]:
                mean = _at(means[column], norm, x, value)
                name = "validation" if column == metric.key else "training"
                texts = [f"{name}, mean of {seeds} seed{'s' * (seeds > 1)}" for seeds in mean["seeds"]]
                traces.append(_curve(norm, look, role, mean["epoch"], mean["mean"], texts))
        about = f"Validation and training {metric.in_unit} by epoch at {X_NAMES[x]} {value}"
        title = f"{X_NAMES[x]} {value}".capitalize()
        chart = {"id": f"curves-{value}", "about": about, "title": title, "height": 250, "data": traces}
        chart |= {"missing": " · ".join(f"{status}: {', '.join(names)}" for status, names in missing.items())}
        charts.append(
            chart | {"log": True, "percent": metric.is_percent, "shared_range": "curves", "xaxis": {"title": "epoch"}}
        )
    return charts


def numbers(values: Iterable[float]) -> list[float | None]:
    """Numbers for JSON: six significant digits, None for NaN."""
    return [None if math.isnan(value) else float(f"{value:.6g}") for value in map(float, values)]


def _over_x(
    name: str, about: str, values: Sequence[int], traces: list[Json], result: Results, *, height: int, lanes: int = 0
) -> Json:
    ends = [math.log10(max(values) * 1.25), math.log10(min(values) / 1.25)] if values else [1, 0]
    axis = {
        "type": "log",
        "range": numbers(ends),
        "tickvals": list(values),
        "ticktext": [str(value) for value in values],
        "title": f"{X_NAMES[result.x]} ({result.task.sample}s)",
    }
    rows = height + LANE * lanes
    return {"id": name, "about": about, "height": rows, "data": traces, "xaxis": axis, "lanes": lanes * LANE}


def _dots(norm: str, look: Style, cells: pd.DataFrame, x: str, column: str, texts: list[str], shift: float) -> Json:
    return _trace(norm, look, "seed", [v * shift for v in cells[x]], cells[column], texts) | {
        "mode": "markers",
        "customdata": cells[x].tolist(),
    }


def _line(norm: str, look: Style, x: Iterable[int], y: Iterable[float], texts: list[str], shift: float) -> Json:
    values = [int(value) for value in x]
    return _trace(norm, look, "mean", [value * shift for value in values], y, texts) | {
        "mode": "lines+markers",
        "customdata": values,
        "line": {"width": look.width, "dash": look.dash},
        "marker": {"symbol": look.symbol, "size": 11 if look.hero else 9},
    }


def _curve(norm: str, look: Style, role: str, x: Iterable[float], y: Iterable[float], texts: list[str]) -> Json:
    width, dash = {"curve": (look.width, look.dash), "train-curve": (1.6, "dot"), "seed-curve": (1, "solid")}[role]
    trace = _trace(norm, look, role, x, y, texts)
    return trace | {"mode": "lines", "customdata": trace["x"], "line": {"width": width, "dash": dash}}


def _lane(trouble: Trouble, lane: int, values: Sequence[int]) -> list[Json]:
    """A line of text, and below it a mark at each batch size concerned."""
    marks = list(trouble.counts)
    shared = {"type": "scatter", "yaxis": "y2", "cliponaxis": False, "hoverinfo": "text"}
    meta = {"norm": trouble.norm, "role": "lane"}
    return [
        shared
        | {
            "meta": meta,
            "mode": "text",
            "x": [max(values) * 1.2],
            "y": [lane + 0.26],
            "text": [escape(trouble.text)],
            "textposition": "middle right",
            "hoverinfo": "skip",
        },
        shared
        | {
            "meta": meta,
            "mode": "markers",
            "x": marks,
            "y": [lane + 0.72] * len(marks),
            "text": [f"{escape(trouble.text)}<br>{some} of {cells} runs" for some, cells in trouble.counts.values()],
            "marker": {"symbol": _MARKS[trouble.status], "size": 9},
        },
    ]


def _trace(norm: str, look: Style, role: str, x: Iterable[float], y: Iterable[float], texts: list[str]) -> Json:
    return {
        "type": "scatter",
        "meta": {"norm": norm, "role": role, "label": escape(look.label)},
        "x": numbers(x),
        "y": numbers(y),
        "text": [escape(text) for text in texts],
    }


def _mean_text(row: Any, metric: Metric) -> str:
    seeds = f"{row['finished']} seed{'s' * (row['finished'] > 1)}"
    mean, low, high = (row[f"{metric.key}{end}"] for end in ("", "_low", "_high"))
    if math.isnan(low):
        return f"{metric.text(mean, 2)}, {seeds}"
    return f"mean {metric.text(mean, 2)}, 95% interval {low:.2f} to {high:.2f}, {seeds}"


def _finished(table: pd.DataFrame, norm: str) -> pd.DataFrame:
    return table[(table["norm"] == norm) & (table["status"] == "finished")]


def _at(rows: pd.DataFrame, norm: str, x: str, value: int) -> pd.DataFrame:
    return rows[(rows["norm"] == norm) & (rows[x] == value)] if len(rows) else rows
