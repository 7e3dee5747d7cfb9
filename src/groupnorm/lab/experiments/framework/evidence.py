"""What an experiment found, in one file: the summary of its records that claims and pictures are made from."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from groupnorm.files import RunFolderError, write_atomically
from groupnorm.lab.common.metric import Metric, TaskRecord
from groupnorm.lab.common.store import RunFolder
from groupnorm.lab.common.trial import Cell

FILE = "evidence.jsonl"
"""The summary's name in a run folder."""

_DIGITS = 6  # significant ones of each number kept
_HEAD = ("experiment", "scale", "command", "last", "arms")
_ALWAYS = ("epoch", "step", "error", "train_error", "seconds")  # of the measures, those that every epoch has


@dataclass(frozen=True)
class Evidence:
    """The records of an experiment at one scale, without checkpoints and logs.

    Attributes:
        head: experiment, scale, command, date, environments, last (epochs whose median is the result), arms (by
            name: dataset, classes, train and val images, note).
        rows: one for each cell: arm, cell (its configuration), status, reason, epochs (its records).
    """

    head: dict[str, Any]
    rows: list[dict[str, Any]]

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per cell: arm, every field of the cell and of its options, family, status, and what was measured.

        The family is the norm without its number of groups, which the scales differ in.

        A measure is the median over the last epochs that have it. A cell that diverged has the error of guessing in
        ``error`` and ``train_error``, and no other measure; one that is undefined or did not end has none at all.
        """
        return pd.DataFrame([self._row(row) for row in self.rows])

    @cached_property
    def curves(self) -> pd.DataFrame:
        """One row per cell and epoch: what identifies the cell, and the record of the epoch."""
        rows = [{**_identity(row), **epoch} for row in self.rows for epoch in row["epochs"]]
        return pd.DataFrame(rows, columns=None if rows else ["arm", *Cell.model_fields, "family", *_ALWAYS])

    def at(self, measure: str = "error", **where: Any) -> pd.Series[float]:
        """A measure by seed, of the cells where each named column of the table has the given value.

        Several cells of one seed are averaged; a seed without a value is left out.
        """
        return _by_seed(self.table, measure, where)

    def at_epoch(self, epoch: int, measure: str = "error", **where: Any) -> pd.Series[float]:
        """The same after an epoch, counted from 1; -1 is the last."""
        curves = self.curves
        if len(curves) and epoch < 0:
            epoch = int(curves["epoch"].max()) + 1 + epoch
        return _by_seed(curves, measure, {**where, "epoch": epoch})

    @property
    def metric(self) -> Metric:
        """That the experiment's task is scored by."""
        return TaskRecord.of(self.head).metric

    def chance(self, arm: str) -> float:
        """The metric of who does not look at the inputs: with classes, the error in percent of guessing one."""
        about = self.head["arms"][arm]
        return float(about["chance"]) if "chance" in about else 100.0 - 100.0 / float(about["classes"])

    def save(self, path: Path) -> None:
        """Write the summary as JSON lines: the head, then one line for each cell."""
        lines = [json.dumps(_rounded(part), separators=(",", ":")) for part in (self.head, *self.rows)]
        write_atomically(path, ("\n".join(lines) + "\n").encode())

    def _row(self, row: dict[str, Any]) -> dict[str, Any]:
        epochs, status = row["epochs"], row["status"]
        measures: dict[str, Any] = {}
        if status == "finished":
            latest = epochs[-self.head["last"] :]
            # An epoch's learning rate has the name of the cell's own, which the rows are told apart by.
            taken = Cell.model_fields
            numbers = [k for k, value in epochs[-1].items() if isinstance(value, int | float) and k not in taken]
            measures = {key: median(epoch[key] for epoch in latest if key in epoch) for key in numbers}
            measures["seconds"] = sum(epoch["seconds"] for epoch in epochs)
        elif status == "diverged":
            measures = dict.fromkeys((self.metric.key, self.metric.train_key), self.chance(row["arm"]))
        return {**_identity(row), "status": status, "reason": row["reason"], **measures}


def load(path: Path) -> Evidence:
    """Read a summary that :meth:`Evidence.save` wrote.

    Raises:
        RunFolderError: there is none, or it is damaged.
    """
    try:
        head, *rows = [json.loads(line) for line in path.read_text().splitlines()]
    except OSError as error:
        raise RunFolderError(f"{path} cannot be read ({error.strerror}); expected a summary of records") from None
    except ValueError:
        raise RunFolderError(f"{path} is damaged; expected JSON lines: run the experiment again") from None
    return Evidence(head, rows)


_LEFT_OUT = ("kind", "learning_rate", "images_per_second", "metric")  # they follow from the cell and the seconds


def summarise(run: RunFolder) -> Evidence:
    """The evidence in the folder of an experiment, finished or not.

    Raises:
        RunFolderError: the folder holds no experiment, or one that this version does not read.
    """
    request = run.request()
    if "experiment" not in request:
        raise RunFolderError(f"{run.path} holds a comparison; expected a folder that `groupnorm run` wrote")
    if lacking := [key for key in (*_HEAD, "labels") if key not in request]:
        raise RunFolderError(
            f"{run.path / 'run.json'} lacks {', '.join(lacking)}; expected what this version of groupnorm writes: use "
            f"the version that wrote it, or run the same experiment again"
        )
    rows: list[dict[str, Any]] = []
    environments: list[dict[str, Any]] = []
    times: list[float] = []
    for cell in run.cells(request):
        records = run.cell(cell.id).records()
        end = records[-1] if records and records[-1]["kind"] == "end" else None
        epochs = [
            {k: v for k, v in record.items() if k not in _LEFT_OUT} for record in records if record["kind"] == "epoch"
        ]
        rows += [
            {
                "arm": arm,
                "cell": cell.model_dump(mode="json", exclude_defaults=True),
                "status": end["status"] if end else ("running" if records else "pending"),
                "reason": end["reason"] if end else "",
                "epochs": epochs,
            }
            for arm in request["labels"].get(cell.id, [])
        ]
        for record in records[:1]:
            if record["kind"] != "start":  # it crashed before it began
                continue
            times.append(record["time"])
            if record["environment"] not in environments:
                environments.append(record["environment"])
    date = pd.Timestamp(max(times), unit="s").strftime("%Y-%m-%d") if times else ""
    head = {key: request[key] for key in _HEAD} | {key: request[key] for key in ("task",) if key in request}
    return Evidence({**head, "date": date, "environments": _shared(environments)}, rows)


def _shared(environments: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The different environments without the digest of the data, which each cell has."""
    found: list[dict[str, Any]] = []
    for environment in environments:
        kept = {key: value for key, value in environment.items() if key != "data"}
        if kept not in found:
            found.append(kept)
    return found


def family(norm: str) -> str:
    """A norm without its number, "gn" for "gn:8": the number of groups depends on the network and so on the scale."""
    return re.sub(r":\w+", "", norm)


def _identity(row: dict[str, Any]) -> dict[str, Any]:
    cell = Cell(**row["cell"])
    fields = cell.model_dump(exclude={"options"})
    derived = {"family": family(cell.norm), "normalization_batch": cell.statistics_batch, "id": cell.id}
    return {"arm": row["arm"], **fields, **derived, **cell.options}


def _by_seed(rows: pd.DataFrame, measure: str, where: dict[str, Any]) -> pd.Series[float]:
    if not len(rows) or measure not in rows:
        return pd.Series(dtype=float)
    chosen = rows
    for column, value in where.items():
        chosen = chosen[chosen[column] == value]
    return chosen.groupby("seed")[measure].mean().dropna()


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, list) else value
