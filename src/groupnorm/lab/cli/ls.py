"""``groupnorm ls``: what there is to choose from."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table


class Kind(StrEnum):
    """What can be listed."""

    NORMS = "norms"
    MODELS = "models"
    DATASETS = "datasets"


def ls(kind: Annotated[Kind, typer.Argument(help="What to list.")]) -> None:
    """List the norms, models or datasets."""
    Console().print({Kind.NORMS: _norms, Kind.MODELS: _models, Kind.DATASETS: _datasets}[kind]())


def _norms() -> Table:
    from groupnorm.nn import CATALOG

    table = Table("spec", "norm", "one mean and variance for", "when to use it", "paper")
    for row in CATALOG.values():
        table.add_row(row.spec, row.title, row.axes, row.advice, row.paper)
    return table


def _models() -> Table:
    from groupnorm.lab.models import MODELS

    table = Table("model", "what it is")
    for row in MODELS.values():
        table.add_row(row.name, row.description)
    table.add_row("package.module:factory", "your own: factory(norm_layer) returns the network")
    return table


def _datasets() -> Table:
    from groupnorm.lab.data import DATASETS, OWN

    table = Table("dataset", "what it is", "one image (C, H, W)", "where from", "licence")
    for name, row in DATASETS.items():
        table.add_row(name, f"{row.title}; {row.source}", row.shape, row.obtained, row.licence)
    for form, description in OWN.items():
        table.add_row(form, description, "", "", "")
    return table
