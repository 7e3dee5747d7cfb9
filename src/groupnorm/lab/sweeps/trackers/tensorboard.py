"""TensorBoard event files: one run per cell, written as the records arrive."""

from __future__ import annotations

import shutil

from groupnorm.lab.common.store import Record, RunFolder
from groupnorm.lab.common.trial import Cell


class TensorBoard:
    """Writes the curves of each cell below ``tensorboard/`` of the run folder; earlier files are replaced."""

    def __init__(self, run: RunFolder) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._open = SummaryWriter
        self.folder = run.path / "tensorboard"
        self._writers: dict[str, SummaryWriter] = {}
        shutil.rmtree(self.folder, ignore_errors=True)

    def add(self, cell: Cell, record: Record) -> None:
        """Write the numbers of one epoch; the file of a cell is closed after its last record."""
        if record["kind"] == "epoch":
            if cell.id not in self._writers:
                self._writers[cell.id] = self._open(self.folder / cell.id)
            for name, value in record.items():
                if isinstance(value, int | float) and name not in ("epoch", "step"):
                    self._writers[cell.id].add_scalar(name, value, record["step"])
            self._writers[cell.id].flush()
        if record["kind"] == "end" and cell.id in self._writers:
            self._writers.pop(cell.id).close()

    def close(self) -> None:
        """Close the files of the cells that have not ended."""
        for cell_id in list(self._writers):
            self._writers.pop(cell_id).close()
