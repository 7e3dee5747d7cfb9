"""The data and the network of a cell: those that were planned, or an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from groupnorm.errors import ArgumentError
from groupnorm.lab.common.trial import Cell
from groupnorm.lab.data import DataError
from groupnorm.lab.models.identity import digest
from groupnorm.lab.tasks import Data, Task, task_of


def check_network(cell: Cell, dataset: Data) -> None:
    """Raise ArgumentError unless the network that the cell's model names is still the one that was planned."""
    if cell.model_digest is None:
        return
    found = digest(cell.model, cell.norm, task_of(cell).example(dataset), dataset.outputs)
    if found != cell.model_digest:
        raise ArgumentError(
            f"model {cell.model!r} has digest {found}; expected {cell.model_digest}, as when the sweep was planned: if "
            f"its code changed, start the command again; a factory must return the same network every time, so seed "
            f"what it draws"
        )


def data_options(asked: Any, task: Task) -> dict[str, Any]:
    """Of the options that concern data, those that a task takes.

    Args:
        asked: a cell or a configuration.
        task: of it.
    """
    return {name: getattr(asked, name) for name in ("image_size", "limit_train", "limit_val") if name in task.takes}


def dataset_of(cell: Cell, data_dir: Path | None, loaded: dict[str, Data]) -> Data:
    """The dataset of a cell, kept in ``loaded`` for the cells that follow."""
    if cell.data_digest not in loaded:
        task = task_of(cell)
        dataset = task.load(cell.dataset, data_dir, **data_options(cell, task))
        if dataset.digest != cell.data_digest:
            raise DataError(
                f"dataset {cell.dataset!r} has digest {dataset.digest}; expected {cell.data_digest}, as when the "
                f"sweep was planned: if its files changed, start the command again; a function must return the same "
                f"data every time, so seed what it draws"
            )
        loaded.clear()  # one dataset in memory at a time
        loaded[cell.data_digest] = dataset
    return loaded[cell.data_digest]
