"""A process that trains cells: ``python -m groupnorm.lab.sweeps.worker FOLDER``.

It reads one bundle per line from standard input, cells that differ in nothing but the seed, and writes one event per
line to standard output, each a JSON object. What a bundle prints goes to the log of its first cell. When standard
input closes, the parent is gone, and the worker ends at once: all that matters is on disk.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TextIO

import torch

from groupnorm.environment import environment
from groupnorm.errors import SingleElementError
from groupnorm.files import RunFolderError
from groupnorm.lab.common.rng import make_deterministic
from groupnorm.lab.common.store import CellFolder, Record, RunFolder
from groupnorm.lab.common.text import readable
from groupnorm.lab.common.trial import FINAL, Cell, Status
from groupnorm.lab.regimes import training
from groupnorm.lab.tasks import Data
from groupnorm.lab.training.ddp import data_parallel
from groupnorm.lab.training.loop import DivergedError, Training
from groupnorm.lab.training.seed_stacking import company, stack
from groupnorm.lab.training.setup import check_network, dataset_of

Emit = Callable[[Record], None]

_PROGRESS_SECONDS = 0.5


@dataclass
class _Place:
    """Where a cell stands: its training, if it is not at its end, where the records go, and who is told."""

    cell: Cell
    folder: CellFolder
    load_data: Callable[[], Data]
    emit: Emit
    data_dir: Path | None = None
    training: Training | None = None

    def begin(self) -> None:
        """Go to where the cell was left."""
        records = self.folder.records()
        if _result(records):
            self.emit(records[-1])
            return
        with self._failures():
            if records and records[-1]["kind"] == "end":
                self.folder.keep(len(records) - 1)  # a crash is tried again
            self.training = _resume(self.cell, self.folder, self.load_data(), self.emit)
            with self.training.rng_scope():
                self._end_if_finished()

    def train(self, until: int | None = None) -> None:
        """Train to the end, or until this many epochs are done."""
        on_step = _reporter([self.emit])
        if self.training is None:
            return
        with self._failures(), data_parallel(self.training, self.data_dir):
            while self.training and self.training.epochs_done != until:
                with self.training.rng_scope():
                    record = self.training.epoch(on_step)
                self.take(record)

    def take(self, record: Record | DivergedError) -> None:
        """Record an epoch, or why there was none."""
        assert self.training is not None
        with self._failures():
            if isinstance(record, DivergedError):
                raise record
            self.folder.append(record)
            with self.training.rng_scope():
                state = self.training.state_dict()
            self.folder.save_checkpoint(state)
            self.emit(record)
            self._end_if_finished()

    def _end_if_finished(self) -> None:
        if self.training and self.training.finished:
            self._end("finished", "")

    def _end(self, status: Status, reason: str) -> None:
        self.training = None
        end = {"kind": "end", "status": status, "reason": reason}
        self.folder.append(end)
        if status in FINAL:
            with suppress(RunFolderError):  # the result is on the disk; the next sweep removes what is left
                self.folder.drop_checkpoint()
        self.emit(end)

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """A failure is a result: it is recorded with its reason."""
        try:
            yield
        except SingleElementError as error:
            self._end("undefined", str(error))
        except DivergedError as error:
            self._end("diverged", str(error))
        except (Exception, SystemExit) as error:  # a network of the user's own may even end the process
            with suppress(OSError):  # the disk may be full
                traceback.print_exc()
            if not _result(self.folder.records()):  # what fails after a result does not undo it
                self._end("crashed", readable(f"{type(error).__name__}: {error}"))


def _result(records: Sequence[Record]) -> bool:
    """Whether the last of a cell's records is a final result."""
    return bool(records) and records[-1].get("status") in FINAL


def run_cells(
    cells: Sequence[Cell],
    run: RunFolder,
    load_data: Callable[[], Data],
    emit: Callable[[str, Record], None],
    data_dir: Path | None = None,
) -> None:
    """Train cells that differ in nothing but the seed from where each stands to its end, recording each epoch.

    They are trained as one network where that changes no bit of any and is faster, else one after the other. A failure
    is a result: it is recorded with its reason, and this returns normally.

    Args:
        cells: what to train.
        run: where their records and checkpoints lie.
        load_data: loads the dataset of the cells.
        emit: called with a cell's id and each new record, and with ``{"kind": "progress", "step": ...}`` in between.
        data_dir: where the other processes of a cell find the dataset.
    """
    waiting = [_Place(cell, run.cell(cell.id), load_data, partial(emit, cell.id), data_dir) for cell in cells]
    while waiting:
        first, *waiting = waiting
        first.begin()
        if first.training is None:
            continue
        others = company(first.training) - 1  # no more begin, which would take memory, and time before the first result
        left, waiting = [first, *waiting[:others]], waiting[others:]
        for place in left[1:]:
            place.begin()
        while len(left := [place for place in left if place.training]) > 1 and _train_together(left):
            pass
        for place in left:
            place.train()


def _train_together(places: Sequence[_Place]) -> bool:
    """Train cells as one network until the first of them ends; False where they are better trained alone."""
    furthest = max(place.training.epochs_done for place in places if place.training)
    for place in places:
        place.train(until=furthest)  # a kill may have left some behind
    runs = [place.training for place in places if place.training]
    if len(runs) < len(places):
        return True
    together = stack(runs)
    if together is None:
        return False
    on_step = _reporter([place.emit for place in places])
    while all(place.training for place in places):
        try:
            records = together.epoch(on_step)
        except (Exception, SystemExit):  # whose it is shows when each goes on alone from its checkpoint
            for place in places:
                place.begin()
            return False
        for place, record in zip(places, records, strict=True):
            place.take(record)
    return True


def _reporter(emits: Sequence[Emit]) -> Callable[[int], None]:
    """Tells of a step now and then."""
    last = time.monotonic()

    def on_step(step: int) -> None:
        nonlocal last
        if time.monotonic() - last > _PROGRESS_SECONDS:
            last = time.monotonic()
            for emit in emits:
                emit({"kind": "progress", "step": step})

    return on_step


def _resume(cell: Cell, folder: CellFolder, dataset: Data, emit: Emit) -> Training:
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
    datasets: dict[str, Data] = {}
    while True:
        task = tasks.get()
        cells = [Cell(**cell) for cell in task["cells"]]
        first = run.cell(cells[0].id)
        first.path.mkdir(parents=True, exist_ok=True)
        _log_to(first.path / "log.txt")

        def emit(cell_id: str, record: Record) -> None:
            try:
                events.write(json.dumps({"cell": cell_id, **record}) + "\n")
            except BrokenPipeError:  # the parent is gone, which is no failure of the cell
                os._exit(0)

        run_bundle(cells, run, Path(task["data_dir"]) if task["data_dir"] else None, emit, datasets)


def run_bundle(
    cells: Sequence[Cell],
    run: RunFolder,
    data_dir: Path | None,
    emit: Callable[[str, Record], None],
    datasets: dict[str, Data] | None = None,
) -> None:
    """Train cells that differ in nothing but the seed, with their folders held and this process made deterministic.

    Args:
        cells: what to train.
        run: where their records and checkpoints lie.
        data_dir: where the datasets lie.
        emit: as :func:`run_cells` takes it.
        datasets: those loaded before, by digest; kept for the bundles that follow.
    """
    make_deterministic()
    torch.set_num_threads(cells[0].threads)
    loaded = {} if datasets is None else datasets

    @cache
    def load_data() -> Data:
        dataset = dataset_of(cells[0], data_dir, loaded)
        check_network(cells[0], dataset)
        return dataset

    with ExitStack() as locks:
        for cell in cells:
            locks.enter_context(run.cell(cell.id).lock())
        run_cells(cells, run, load_data, emit, data_dir)


def _read(lines: TextIO, tasks: SimpleQueue[Any]) -> None:
    try:
        for line in lines:
            tasks.put(json.loads(line))  # raises for a line that a kill of the parent tore
    finally:
        os._exit(0)


def _log_to(path: Path) -> None:
    """Send standard output and error, also those of native code, to a file."""
    with open(path, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


if __name__ == "__main__":
    main()
