"""The data and the network of a cell: those that were planned, or an error."""

from __future__ import annotations

from pathlib import Path

from groupnorm.errors import ArgumentError
from groupnorm.lab.common.trial import Cell
from groupnorm.lab.data import DataError, Dataset, load
from groupnorm.lab.models.identity import digest


def check_network(cell: Cell, dataset: Dataset) -> None:
    """Raise ArgumentError unless the network that the cell's model names is still the one that was planned."""
    if cell.model_digest is None:
        return
    found = digest(cell.model, cell.norm, dataset.batch(dataset.train_images[:2]), dataset.num_classes)
    if found != cell.model_digest:
        raise ArgumentError(
            f"model {cell.model!r} has digest {found}; expected {cell.model_digest}, as when the sweep was planned: if "
            f"its code changed, start the command again; a factory must return the same network every time, so seed "
            f"what it draws"
        )


def dataset_of(cell: Cell, data_dir: Path | None, loaded: dict[str, Dataset]) -> Dataset:
    """The dataset of a cell, kept in ``loaded`` for the cells that follow."""
    if cell.data_digest not in loaded:
        dataset = load(
            cell.dataset,
            data_dir,
            image_size=cell.image_size,
            limit_train=cell.limit_train,
            limit_val=cell.limit_val,
        )
        if dataset.digest != cell.data_digest:
            raise DataError(
                f"dataset {cell.dataset!r} has digest {dataset.digest}; expected {cell.data_digest}, as when the "
                f"sweep was planned: if its files changed, start the command again; a function must return the same "
                f"data every time, so seed what it draws"
            )
        loaded.clear()  # one dataset in memory at a time
        loaded[cell.data_digest] = dataset
    return loaded[cell.data_digest]
