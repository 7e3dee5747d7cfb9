"""Carry a sweep out: the request is recorded, what is left is trained, and somebody may watch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing

from groupnorm.lab.common.metric import TaskRecord
from groupnorm.lab.common.store import Record, RunFolder
from groupnorm.lab.common.trial import Cell, varied
from groupnorm.lab.sweeps.configuration import Comparison
from groupnorm.lab.sweeps.local import unfinished
from groupnorm.lab.sweeps.progress import Display, NullProgress, Progress, ProgressSink
from groupnorm.lab.sweeps.schedulers import schedule
from groupnorm.lab.sweeps.trackers import open_trackers


def run_trials(
    cells: Sequence[Cell],
    request: Record,
    run: RunFolder,
    *,
    samples: Mapping[str, int],
    how: Comparison,
    labels: Mapping[str, str] | None = None,
    progress: bool = True,
) -> None:
    """Train the cells that have no final result in the run folder yet.

    Args:
        cells: all cells of the sweep.
        request: what is recorded as the run's request, besides the cells.
        run: the folder; the caller holds its lock.
        samples: number of training samples, by the digest of the data.
        how: scheduler, workers, data_dir and track of the sweep; the rest is not looked at.
        labels: what stands before a cell's norm in the table, by the cell's id; None is nothing.
        progress: show a live table.
    """
    run.write_request({**request, "cells": [cell.model_dump() for cell in cells]})
    by_id = {cell.id: cell for cell in cells}
    records = {cell_id: run.cell(cell_id).records() for cell_id in by_id}
    trackers = open_trackers(how.track, run, by_id, records)
    display: ProgressSink = NullProgress()
    if progress:
        display = Display(
            Progress(by_id, records, samples, how.worker_count or 1, TaskRecord.of(request).metric),
            run.path,
            varied(cells),
            labels,
        )
    left = unfinished(by_id, records, run)
    with display, closing(schedule(left, run, how)) as events:
        for event in events:
            display.show(event)
            for tracker in trackers:
                tracker.add(by_id[event["cell"]], event)
    for tracker in trackers:
        tracker.close()
