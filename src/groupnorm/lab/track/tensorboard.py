"""TensorBoard event files: one run per cell, a view of its records."""

from __future__ import annotations

import shutil
from pathlib import Path

from groupnorm.lab.cell import Cell
from groupnorm.lab.records import Record

_CURVES = ("loss", "train_error", "error", "learning_rate", "images_per_second")


class EventFiles:
    """Writes the curves of each cell as its records arrive.

    Args:
        folder: where the event files go, one folder per cell; earlier ones of the same cell are replaced.
    """

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._open = SummaryWriter
        self.folder = folder
        self._writers: dict[str, SummaryWriter] = {}

    def write(self, cell: Cell, records: list[Record]) -> None:
        """Write records that already exist, whole."""
        shutil.rmtree(self.folder / cell.id, ignore_errors=True)
        for record in records:
            self.add(cell.id, record)

    def add(self, cell_id: str, record: Record) -> None:
        """Write one new record of a cell; its file is closed after the last."""
        if record["kind"] == "epoch":
            if cell_id not in self._writers:
                self._writers[cell_id] = self._open(self.folder / cell_id)
            for curve in _CURVES:
                self._writers[cell_id].add_scalar(curve, record[curve], record["step"])
            self._writers[cell_id].flush()
        if record["kind"] == "end" and cell_id in self._writers:
            self._writers.pop(cell_id).close()

    def close(self) -> None:
        """Close the files of the cells that have not ended."""
        for cell_id in list(self._writers):
            self._writers.pop(cell_id).close()
