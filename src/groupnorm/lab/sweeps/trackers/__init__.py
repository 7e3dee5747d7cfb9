"""Where records go besides the run folder, on request: TensorBoard, MLflow, Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from groupnorm.lab.common.store import Record, RunFolder
from groupnorm.lab.common.trial import Cell

TRACKERS = ("tensorboard", "mlflow", "wandb")
"""Their names; the packages of the latter two come with ``pip install groupnorm[track]``."""


class Tracker(Protocol):
    """Takes in the records of a sweep, the old ones first, each once."""

    def add(self, cell: Cell, record: Record) -> None:
        """Take in one record of a cell."""

    def close(self) -> None:
        """Write what is not written yet."""


def open_trackers(
    names: Sequence[str], run: RunFolder, cells: Mapping[str, Cell], records: Mapping[str, Sequence[Record]]
) -> list[Tracker]:
    """The trackers of these names, with the records that the cells have already, each by the cell's id."""
    trackers = [_open(name, run) for name in names]
    for cell_id, cell in cells.items() if trackers else ():
        for record in records[cell_id]:
            for tracker in trackers:
                tracker.add(cell, record)
    return trackers


def _open(name: str, run: RunFolder) -> Tracker:
    """Each imports its package when it is asked for, and not before."""
    if name == "tensorboard":
        from groupnorm.lab.sweeps.trackers.tensorboard import TensorBoard

        return TensorBoard(run)
    if name == "mlflow":
        from groupnorm.lab.sweeps.trackers.mlflow import MLflow

        return MLflow(run)
    from groupnorm.lab.sweeps.trackers.wandb import WeightsAndBiases

    return WeightsAndBiases(run)
