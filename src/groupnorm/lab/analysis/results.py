"""What a sweep found, as tables: a view of the records, finished or not."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from groupnorm.files import RunFolderError
from groupnorm.lab.common.metric import Metric, TaskRecord
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
        task: what was learned, and the metric that it is scored by.
    """

    def __init__(self, folder: Path | str) -> None:
        self._run = RunFolder(folder)
        self.folder = self._run.path
        self.request: Record = self._run.request()
        self.cells: list[Cell] = self._run.cells(self.request)
        try:
            self.task = TaskRecord.of(self.request)
        except (KeyError, TypeError):
            raise RunFolderError(
                f"{self.folder / 'run.json'}: task is {self.request['task']!r}; expected what this version of "
                f"groupnorm writes: use the version that wrote it, or run the same compare again"
            ) from None
        self._records = {cell.id: self._run.cell(cell.id).records() for cell in self.cells}

    @property
    def table(self) -> pd.DataFrame:
        """One row per cell.

        Columns: norm, batch_size, normalization_batch, seed, status, reason, error and train_error (percent, of
        the last epoch; NaN unless finished), best_error (percent, the lowest of all epochs), loss, epochs (done),
        steps, seconds (of training), images_per_second (median over epochs), cell (id). Of a task other than
        classification, the key of its metric stands for "error", and its sample for "image".
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
    def metric(self) -> Metric:
        """What the task is scored by."""
        return self.task.metric

    @property
    def summary(self) -> pd.DataFrame:
        """Means and intervals over seeds; see :func:`groupnorm.lab.analysis.statistics.summary`."""
        from groupnorm.lab.analysis.statistics import summary

        return summary(self.table, self.metric.key)

    @property
    def differences(self) -> pd.DataFrame:
        """Paired differences; see :func:`groupnorm.lab.analysis.statistics.differences`."""
        from groupnorm.lab.analysis.statistics import differences

        return differences(self.table, metric=self.metric.key)

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
        key, train_key, rate = self.metric.key, self.metric.train_key, self.task.rate
        return {
            **_keys(cell),
            "status": status,
            "reason": end["reason"] if end else "",
            key: last.get(key, nan),
            train_key: last.get(train_key, nan),
            self.metric.best_key: self.metric.best([e[key] for e in epochs]) if last else nan,
            "loss": last.get("loss", nan),
            "epochs": len(epochs),
            "steps": epochs[-1]["step"] if epochs else 0,
            "seconds": sum(e["seconds"] for e in epochs) if epochs else nan,
            rate: median(e[rate] for e in epochs) if epochs else nan,
        }


def _keys(cell: Cell) -> dict[str, Any]:
    return {
        "norm": cell.norm,
        "batch_size": cell.batch_size,
        "normalization_batch": cell.statistics_batch,
        "seed": cell.seed,
        "cell": cell.id,
    }
