"""``groupnorm ls``: what there is to choose from."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from groupnorm.lab.data import DATASETS, OWN
from groupnorm.lab.models import MODELS
from groupnorm.nn import CATALOG


class Kind(StrEnum):
    """What can be listed."""

    NORMS = "norms"
    MODELS = "models"
    DATASETS = "datasets"
    TASKS = "tasks"
    REGIMES = "regimes"
    EXPERIMENTS = "experiments"


def ls(kind: Annotated[Kind, typer.Argument(help="What to list.")]) -> None:
    """List the norms, models, datasets, tasks, regimes or experiments."""
    console = Console(emoji=False)
    tables = {
        Kind.NORMS: _norms,
        Kind.MODELS: _models,
        Kind.DATASETS: _datasets,
        Kind.TASKS: _tasks,
        Kind.REGIMES: _regimes,
        Kind.EXPERIMENTS: _experiments,
    }
    console.print(tables[kind]())
    if kind is Kind.DATASETS:
        for form, description in OWN.items():
            console.print(f"{form}\n    {description}", markup=False, highlight=False, soft_wrap=True)


def _table(name: str, *columns: str) -> Table:
    """A table that never cuts what a user copies."""
    table = Table(show_lines=True)
    table.add_column(name, no_wrap=True, style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _norms() -> Table:
    table = _table("spec", "norm", "what shares statistics", "when to use it")
    for row in CATALOG.values():
        statistics = f"{row.shares} for {row.axes}" if row.sets(1) else "nothing"
        table.add_row(row.spec, f"{row.title}\n[dim]{row.paper}[/]", statistics, row.advice)
    return table


def _models() -> Table:
    table = _table("model", "what it is")
    for row in MODELS.values():
        table.add_row(row.name, row.description)
    table.add_row("package.module:factory", "your own: factory(norm_layer) returns the network")
    return table


def _datasets() -> Table:
    table = _table("dataset", "what it is", "one image (C, H, W)", "where from", "licence")
    for name, row in DATASETS.items():
        table.add_row(name, f"{row.title}; {row.source}", row.shape, row.obtained, row.licence)
    return table


def _tasks() -> Table:
    from groupnorm.lab.tasks import TASKS

    table = _table("task", "what it is", "dataset", "model")
    for row in TASKS.values():
        table.add_row(row.name, row.description, row.dataset, row.model)
    table.add_row("package.module:Class", "your own, derived from groupnorm.lab.tasks.Task", "", "")
    return table


def _regimes() -> Table:
    from groupnorm.lab.regimes import REGIMES

    table = _table("regime", "what it is", "options")
    for name, kind in REGIMES.items():
        title = "Every batch from all training samples" if name == "standard" else (kind.__doc__ or "").split(".")[0]
        table.add_row(name, " ".join(title.split()), ", ".join(sorted(kind.options or ())))
    table.add_row("package.module:Class", "your own, derived from groupnorm.lab.training.loop.Training", "")
    return table


def _experiments() -> Table:
    from groupnorm.lab.experiments import EXPERIMENTS

    table = _table("experiment", "question", "source", "small", "full")
    for row in EXPERIMENTS.values():
        table.add_row(row.name, row.question, row.source, row.expected("small")[0], row.expected("full")[0])
    return table
