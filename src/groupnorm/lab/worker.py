"""A process that trains cells: ``python -m groupnorm.lab.worker FOLDER``.

It reads one cell per line from standard input and writes one event per line to standard output, each a JSON
object. When standard input closes, the parent is gone, and the worker ends at once: all that matters is on disk.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TextIO

import torch

from groupnorm.errors import SingleElementError
from groupnorm.lab.cell import FINAL, Cell, Status
from groupnorm.lab.data import DataError, Dataset, load
from groupnorm.lab.environment import environment
from groupnorm.lab.records import CellFolder, Record, RunFolder
from groupnorm.lab.train import DivergedError, Training, training

Emit = Callable[[Record], None]

_PROGRESS_SECONDS = 0.5


def run_cell(cell: Cell, folder: CellFolder, load_data: Callable[[], Dataset], emit: Emit) -> None:
    """Train a cell from where it stands to its end, recording each epoch.

    A failure is a result: it is recorded with its reason, and this returns normally.

    Args:
        cell: what to train.
        folder: where its records and its checkpoint lie.
        load_data: loads the dataset of the cell.
        emit: called with each new record, and with ``{"kind": "progress", "step": ...}`` in between.
    """
    records = folder.records()
    if records and records[-1]["kind"] == "end":
        if records[-1]["status"] in FINAL:
            folder.drop_checkpoint()
            emit(records[-1])
            return
        folder.keep(len(records) - 1)  # a crash is tried again
    status: Status = "finished"
    reason = ""
    try:
        run = _resume(cell, folder, load_data(), emit)
        last = time.monotonic()

        def on_step(step: int) -> None:
            nonlocal last
            if time.monotonic() - last > _PROGRESS_SECONDS:
                last = time.monotonic()
                emit({"kind": "progress", "step": step})

        while not run.finished:
            record = run.epoch(on_step)
            folder.append(record)
            folder.save_checkpoint(run.state_dict())
            emit(record)
    except SingleElementError as error:
        status, reason = "undefined", str(error)
    except DivergedError as error:
        status, reason = "diverged", str(error)
    except (Exception, SystemExit) as error:  # a network of the user's own may even end the process
        traceback.print_exc()
        status, reason = "crashed", f"{type(error).__name__}: {error}"
    end = {"kind": "end", "status": status, "reason": reason}
    folder.append(end)
    if status in FINAL:
        folder.drop_checkpoint()
    emit(end)


def _resume(cell: Cell, folder: CellFolder, dataset: Dataset, emit: Emit) -> Training:
    """The training at its last checkpoint; from the start when there is none, or when the environment changed."""
    run = training(cell, dataset)
    records = folder.records()
    now = {**environment(), "data": cell.data_digest}
    changes = _changes(records[0].get("environment", {}), now) if records else ""
    checkpoint = None if changes else folder.load_checkpoint()
    if checkpoint is not None and checkpoint[0] <= len(records):
        count, state = checkpoint
        folder.keep(count)
        run.load_state_dict(state)
        return run
    if changes:
        emit({"kind": "restart", "reason": changes})
    folder.drop_checkpoint()
    folder.keep(0)
    start = {"kind": "start", "cell": cell.model_dump(), "environment": now, "time": time.time()}
    folder.append(start)
    return run


def _changes(before: Record, now: Record) -> str:
    """What differs between two environments, in words; "" when nothing does."""
    return ", ".join(
        f"{key} {before.get(key)} -> {now.get(key)}" for key in before | now if before.get(key) != now.get(key)
    )


def main() -> None:
    """Serve cells until standard input closes."""
    run = RunFolder(sys.argv[1])
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a user's model prints must not mix with the events
    lines = os.fdopen(os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # nor may it read the cells
    tasks: SimpleQueue[Any] = SimpleQueue()
    threading.Thread(target=_read, args=(lines, tasks), daemon=True).start()
    _make_deterministic()
    datasets: dict[str, Dataset] = {}
    while True:
        task = tasks.get()
        cell = Cell(**task["cell"])
        folder = run.cell(cell.id)

        def emit(record: Record, cell_id: str = cell.id) -> None:
            events.write(json.dumps({"cell": cell_id, **record}) + "\n")

        with folder.lock():
            _log_to(folder.path / "log.txt")
            torch.set_num_threads(cell.threads)
            run_cell(cell, folder, partial(_load, cell, task["data_dir"], datasets), emit)


def _load(cell: Cell, data_dir: str | None, loaded: dict[str, Dataset]) -> Dataset:
    """The dataset of a cell, kept for the cells that follow."""
    if cell.data_digest not in loaded:
        dataset = load(
            cell.dataset,
            Path(data_dir) if data_dir else None,
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


def _read(lines: TextIO, tasks: SimpleQueue[Any]) -> None:
    for line in lines:
        tasks.put(json.loads(line))
    os._exit(0)


def _log_to(path: Path) -> None:
    """Send standard output and error, also those of native code, to a file."""
    with open(path, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _make_deterministic() -> None:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)


if __name__ == "__main__":
    main()
