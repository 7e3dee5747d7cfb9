"""What a sweep found, as tables: a view of the records, finished or not."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from groupnorm.lab.common.store import Record, RunFolder
from groupnorm.lab.common.trial import Cell, varied

if TYPE_CHECKING:
    import pandas as pd


class Results:
    """The records of a run folder.

    Attributes:
        folder: where the records lie.
        request: what was asked for: ``command``, ``config``, ``cells``.
        cells: the cells asked for, in the order of the request.
    """

    def __init__(self, folder: Path | str) -> None:
        self._run = RunFolder(folder)
        self.folder = self._run.path
        self.request: Record = self._run.request()
        self.cells: list[Cell] = self._run.cells(self.request)
        self._records = {cell.id: self._run.cell(cell.id).records() for cell in self.cells}

    @property
    def table(self) -> pd.DataFrame:
        """One row per cell.

        Columns: norm, batch_size, normalization_batch, seed, status, reason, error and train_error (percent, of
        the last epoch; NaN unless finished), best_error (percent, the lowest of all epochs), loss, epochs (done),
        steps, seconds (of training), images_per_second (median over epochs), cell (id).
        """
        import pandas as pd  # not where a sweep or its workers begin: it takes as long as half of torch

        return pd.DataFrame([self._row(cell) for cell in self.cells])

    @property
    def curves(self) -> pd.DataFrame:
        """One row per cell and epoch: norm, batch_size, normalization_batch, seed, cell, and the epoch's record.

        The record has: epoch, step, loss (mean over the epoch's training batches), train_error (percent, over the
        same batches in training mode), error (percent, validation), learning_rate, seconds, images_per_second.
        """
        import pandas as pd

        rows = [
            {**_keys(cell), **{k: v for k, v in record.items() if k != "kind"}}
            for cell in self.cells
            for record in self._records[cell.id]
            if record["kind"] == "epoch"
        ]
        return pd.DataFrame(rows)

    @property
    def environments(self) -> list[dict[str, Any]]:
        """The different environments (versions, machine, revision) that the cells were trained in."""
        found: list[dict[str, Any]] = []
        for records in self._records.values():
            for record in records:
                if record["kind"] == "start" and record["environment"] not in found:
                    found.append(record["environment"])
        return found

    @property
    def x(self) -> str:
        """The column that the sweep varies: "batch_size" or "normalization_batch"."""
        return varied(self.cells)

    def __repr__(self) -> str:
        counts = self.table["status"].value_counts().to_dict()
        return f"{type(self).__name__}({str(self.folder)!r}, {len(self.cells)} cells: {counts})"

    def _row(self, cell: Cell) -> dict[str, Any]:
        records = self._records[cell.id]
        epochs = [record for record in records if record["kind"] == "epoch"]
        end = records[-1] if records and records[-1]["kind"] == "end" else None
        status = end["status"] if end else ("running" if records else "pending")
        last = epochs[-1] if epochs and status == "finished" else {}
        nan = float("nan")
        return {
            **_keys(cell),
            "status": status,
            "reason": end["reason"] if end else "",
            "error": last.get("error", nan),
            "train_error": last.get("train_error", nan),
            "best_error": min((e["error"] for e in epochs), default=nan) if last else nan,
            "loss": last.get("loss", nan),
            "epochs": len(epochs),
            "steps": epochs[-1]["step"] if epochs else 0,
            "seconds": sum(e["seconds"] for e in epochs) if epochs else nan,
            "images_per_second": median(e["images_per_second"] for e in epochs) if epochs else nan,
        }


def _keys(cell: Cell) -> dict[str, Any]:
    return {
        "norm": cell.norm,
        "batch_size": cell.batch_size,
        "normalization_batch": cell.statistics_batch,
        "seed": cell.seed,
        "cell": cell.id,
    }
