"""One offline HTML page that shows a run: a pure view of its records, the same bytes for the same records."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from pathlib import Path

import jinja2
import plotly.offline
from matplotlib.figure import Figure

from groupnorm.lab.analysis import statistics
from groupnorm.lab.analysis.curves import X_NAMES
from groupnorm.lab.analysis.labels import find_baseline, label
from groupnorm.lab.analysis.results import Results
from groupnorm.lab.common.store import RunFolder
from groupnorm.lab.plots import figures
from groupnorm.lab.plots import ranking as standings
from groupnorm.lab.plots import style as drawing
from groupnorm.lab.plots.palette import styles
from groupnorm.lab.report import charts, findings, notes, view

_MANY = 6
"""From so many norms on the page also ranks them in one picture."""


def write_report(result: Results, run: RunFolder) -> Path:
    """Write report.html, figures/, table.csv and summary.csv, and return the report's path.

    Args:
        result: a finished or unfinished result.
        run: the folder to write to.
    """
    norms = list(dict.fromkeys(cell.norm for cell in result.cells))
    pictures = {
        "error_over_batch_size": figures.error_over_batch_size(result),
        "standings": standings.standings(result),
        "learning_curves": figures.learning_curves(result),
        "throughput": figures.throughput(result),
        "shared_sets": figures.shared_sets(norms),
    }
    for name, picture in pictures.items():
        for kind in ("svg", "png"):
            run.write(f"figures/{name}.{kind}", drawing.encode(picture, kind))
    table = result.table
    run.write("table.csv", table.to_csv(index=False))
    paired = result.differences.drop(columns=result.metric.key)
    run.write(
        "summary.csv", result.summary.merge(paired, how="left", on=["norm", *statistics.SETTING]).to_csv(index=False)
    )
    return run.write("report.html", render(result))


def render(result: Results) -> str:
    """The page."""
    looks = styles(list(dict.fromkeys(cell.norm for cell in result.cells)))
    baseline = find_baseline(list(looks))
    table = result.table
    data = {
        "norms": {norm: [look.color, look.dark] for norm, look in looks.items()},
        "charts": [
            charts.error_chart(result, looks),
            *charts.curve_charts(result, looks),
            charts.speed_chart(
                result, looks, result.task.rate, f"Training {result.task.sample}s per second of each finished run"
            ),
            charts.speed_chart(result, looks, "seconds", "Seconds of training of each finished run"),
        ],
    }
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__name__),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["tint"] = lambda text: view.tint(text, looks)
    scripts = {"plotly": plotly.offline.get_plotlyjs(), "page": _static("report.js")}
    return environment.get_template("report.html").render(
        result=result,
        x=X_NAMES[result.x],
        found=findings.find(table, result.x, result.metric),
        metric=result.metric,
        sample=result.task.sample,
        looks=list(looks.values()),
        many=charts.MANY,
        norms=list(looks),
        baseline=label(baseline) if baseline else "",
        data=data,
        data_line=notes.data_line(result),
        matrix=view.matrix(result, looks),
        comparisons=view.comparisons(result, looks),
        runs=view.runs(result, looks),
        cards=view.cards(looks),
        standings=_embedded(standings.standings(result)) if len(looks) > _MANY else "",
        notes=notes.notes(result),
        configuration=view.flatten(result.request.get("config") or {}),
        environments=view.environments(result.environments),
        command=str(result.request.get("command", "")),
        style=_static("report.css"),
        scripts=scripts,
        hashes=[_hash(script) for script in scripts.values()],
    )


def _static(name: str) -> str:
    return (resources.files(__name__) / "static" / name).read_text(encoding="utf-8")


def _embedded(picture: Figure) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(drawing.encode(picture, "svg")).decode()


def _hash(script: str) -> str:
    """How a content security policy names a script, so that no other one runs."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
