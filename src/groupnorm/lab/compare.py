"""The main job: train the same network with each norm over batch sizes, and show who survives."""

from __future__ import annotations

import os
import shlex
from contextlib import closing
from pathlib import Path
from typing import Any

from groupnorm.errors import GroupNormError
from groupnorm.lab.cell import Cell
from groupnorm.lab.comparison import Comparison, plan
from groupnorm.lab.data import Dataset
from groupnorm.lab.display import Display, Progress, Shows, Silent
from groupnorm.lab.records import RunFolder
from groupnorm.lab.result import Result
from groupnorm.lab.sweep import WORKER, sweep, unfinished
from groupnorm.lab.tensorboard import EventFiles

_planning: list[bool] = []  # not empty while modules of the user's are imported


def compare(*, out: Path | str | None = None, progress: bool = True, **options: Any) -> Result:
    """Train every norm at every batch size with every seed, in parallel, and return what was found.

    Everything is recorded in a folder as it happens. The same call goes on where an interrupted one stopped, and
    repeats nothing that is finished.

    Args:
        out: the run's folder. Default: ``runs/DATASET-MODEL`` below the current folder.
        progress: show a live table.
        **options: the configuration; see :class:`groupnorm.lab.comparison.Comparison` for each option and its
            default: ``dataset``, ``model``, ``norms``, ``batch_sizes``, ``seeds``, ``epochs``, ...

    Returns:
        The result, with ``.table``, ``.plot()`` and ``.report()``.

    Raises:
        ConfigurationError: lists every problem of the configuration, before anything trains.
        RunFolderError: another process is writing to the folder.

    Example::

        >>> result = groupnorm.lab.compare(norms=["bn", "gn"], batch_sizes=[32, 2])
        >>> result.table.groupby(["norm", "batch_size"]).error.mean()
    """
    if os.environ.get(WORKER) or _planning:
        raise GroupNormError(
            "compare() was called while your module was being imported for another compare(); expected a module that "
            "only defines things: put the call under `if __name__ == '__main__':`, or the network into its own file"
        )
    _planning.append(True)
    try:
        comparison, dataset = plan(**options)
    finally:
        _planning.clear()
    run = RunFolder(out if out is not None else default_folder(comparison))
    with run.lock():
        return _run(comparison, dataset, run, progress)


def default_folder(comparison: Comparison) -> Path:
    """``runs/DATASET-MODEL``, with names reduced to their last part."""
    names = (comparison.dataset, comparison.model)
    return Path("runs") / "-".join(name.rstrip("/").split("/")[-1].split(":")[-1] for name in names)


def _run(comparison: Comparison, dataset: Dataset, run: RunFolder, progress: bool) -> Result:
    cells = comparison.cells(dataset.digest)
    run.write_request(
        {
            "command": shlex.join(comparison.command(run.path)),
            "config": comparison.model_dump(mode="json"),
            "dataset": {
                "name": dataset.name,
                "note": dataset.note,
                "train": len(dataset.train_images),
                "val": len(dataset.val_images),
                "classes": dataset.num_classes,
            },
            "cells": [cell.model_dump() for cell in cells],
        }
    )
    event_files = _event_files(cells, run) if comparison.tensorboard else None
    display: Shows = Silent()
    if progress:
        known = Progress(cells, run, len(dataset.train_images), comparison.worker_count)
        display = Display(known, Result(run.path).x)
    left = unfinished(cells, run)
    with display, closing(sweep(left, run, comparison.worker_count, comparison.data_dir)) as events:
        for event in events:
            display.show(event)
            if event_files:
                event_files.add(event["cell"], event)
    if event_files:
        event_files.close()
    return Result(run.path)


def _event_files(cells: list[Cell], run: RunFolder) -> EventFiles:
    event_files = EventFiles(run.path / "tensorboard")
    for cell in cells:
        event_files.write(cell, run.cell(cell.id).records())
    return event_files
