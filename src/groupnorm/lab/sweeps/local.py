"""Which cells are left, and their training in parallel worker processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from groupnorm.lab.common.processes import ending
from groupnorm.lab.common.store import Record, RunFolder
from groupnorm.lab.common.trial import FINAL, Cell
from groupnorm.lab.training.seed_stacking import SEEDS, may_stack

WORKER = "GROUPNORM_WORKER"
"""Environment variable by which a worker process knows itself."""

_LONG = 20 * SEEDS  # cells; the 15 of the small bundles, slower by half, are few among them

Event = dict[str, Any]
"""A record of a cell with its id under "cell", or {"kind": "begin" | "progress"}."""


def unfinished(cells: Mapping[str, Cell], records: Mapping[str, Sequence[Record]], run: RunFolder) -> list[Cell]:
    """The cells that have no final result yet, the longest first, so that the last ones end together.

    Args:
        cells: all cells, by their ids.
        records: what is recorded of each, by the same ids.
        run: the folder of the records; it loses the checkpoints of what is finished.
    """
    left = []
    for cell_id, cell in cells.items():
        if status(records[cell_id]) not in FINAL:
            left.append(cell)
        else:
            run.cell(cell_id).drop_checkpoint()  # a kill may have come between the result and this
    return sorted(left, key=lambda cell: cell.statistics_batch)


def bundles(cells: Sequence[Cell], workers: int) -> list[list[Cell]]:
    """Cells that may be trained as one network: they differ in nothing but the seed. At least one for each worker.

    A long sweep begins with a bundle of one, and each that follows is twice as large, so that the first result comes
    as early as in a short sweep.

    Args:
        cells: in the order in which they are to be trained; a bundle stands where its first cell stood.
        workers: number of processes.
    """
    alike: dict[str, list[Cell]] = {}
    for cell in cells:
        key = cell.model_copy(update={"seed": 0}).id if may_stack(cell) else cell.id
        alike.setdefault(key, []).append(cell)
    parts: list[list[Cell]] = []
    size = 1 if len(cells) > _LONG else SEEDS
    for found in alike.values():
        rest = iter(found)
        while part := list(islice(rest, size)):
            parts.append(part)
            size = min(2 * size, SEEDS)
    while len(parts) < min(workers, len(cells)):
        longest = max(range(len(parts)), key=lambda place: len(parts[place]))
        half = (len(parts[longest]) + 1) // 2
        parts[longest : longest + 1] = [parts[longest][:half], parts[longest][half:]]
    return parts


def sweep(cells: Sequence[Cell], run: RunFolder, workers: int, data_dir: Path | None) -> Generator[Event, None, None]:
    """Train the cells and yield events as they happen.

    A worker that dies ends its cells as crashed, and the sweep goes on. Closing the iterator, or an exception in
    its consumer, ends the workers; what they recorded stays.

    Args:
        cells: what to train, in this order.
        run: where the records go.
        workers: number of processes, one bundle of cells each at a time.
        data_dir: where the datasets lie.
    """
    events: SimpleQueue[tuple[_Worker, Event | None]] = SimpleQueue()
    left: deque[list[Cell]] = deque()
    active: set[_Worker] = set()

    def next_bundle(worker: _Worker) -> Iterator[Event]:
        if left:
            worker.give(left.popleft(), data_dir)
            for cell_id in worker.bundle:
                yield {"kind": "begin", "cell": cell_id}
        else:
            active.discard(worker)
            worker.stop()

    try:
        for _ in range(min(workers, len(cells))):
            active.add(_Worker(run, events))
        left.extend(bundles(cells, workers))  # while they import torch
        for worker in list(active):
            yield from next_bundle(worker)
        while active:
            worker, event = events.get()
            if event is not None:
                yield event
                if event["kind"] == "end" and worker.ended(event["cell"]):
                    yield from next_bundle(worker)
            elif worker in active:  # its output ended before its cells did
                active.discard(worker)
                yield from worker.crashed()
                if left:
                    worker = _Worker(run, events)
                    active.add(worker)
                    yield from next_bundle(worker)
    finally:
        for worker in active:
            worker.kill()


class _Worker:
    """A worker process, and the thread that turns its output into events."""

    def __init__(self, run: RunFolder, events: SimpleQueue[tuple[_Worker, Event | None]]) -> None:
        self.run = run
        self.bundle: list[str] = []
        self.unfinished: set[str] = set()
        path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)  # what the parent can import, it can
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", WORKER: "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "groupnorm.lab.sweeps.worker", str(run.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
            bufsize=1,
            start_new_session=True,  # an interrupt at the terminal is the parent's to handle
        )
        threading.Thread(target=self._listen, args=(events,), daemon=True).start()
        threading.Thread(target=self._reap, daemon=True).start()

    def give(self, cells: Sequence[Cell], data_dir: Path | None) -> None:
        self.bundle = [cell.id for cell in cells]
        self.unfinished = set(self.bundle)
        task = {"cells": [cell.model_dump() for cell in cells], "data_dir": str(data_dir) if data_dir else None}
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died while idle; its listener reports that
            self.process.stdin.write(json.dumps(task) + "\n")

    def ended(self, cell_id: str) -> bool:
        """Take note that a cell has ended; whether it was the last of the bundle."""
        self.unfinished.discard(cell_id)
        return not self.unfinished

    def stop(self) -> None:
        """Let it end by itself: it has no cells, and nothing more will come."""
        self._close_input()
        self.process.wait(timeout=60)

    def kill(self) -> None:
        """End it with its cells unfinished."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self._close_input()
        self.process.wait()

    def _close_input(self) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()

    def crashed(self) -> Iterator[Event]:
        """Record that the process died with these cells unfinished."""
        code = self.process.wait()  # before its input closes, or it would end by that, with exit code 0
        self._close_input()
        cause = ending(code)
        memory = "; out of memory?" if cause.endswith("SIGKILL") else ""
        record: Record = {
            "kind": "end",
            "status": "crashed",
            "reason": f"the worker {cause}{memory}; see cells/{self.bundle[0]}/log.txt",
        }
        for cell_id in self.bundle:
            if cell_id not in self.unfinished:
                continue
            folder = self.run.cell(cell_id)
            with folder.lock():  # what writes to it yet must not find a line among its own
                records = folder.records()
                if status(records) == "pending":  # else it died after its last record, before telling
                    folder.append(record)
                    records = [record]
            yield {"cell": cell_id, **records[-1]}

    def _reap(self) -> None:
        """When the process ends, end what it started too: a child would keep its output open, and the sweep waiting."""
        self.process.wait()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def _listen(self, events: SimpleQueue[tuple[_Worker, Event | None]]) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                if line.endswith("\n"):  # else a kill tore it
                    events.put((self, json.loads(line)))
        events.put((self, None))


def status(records: Sequence[Record]) -> str:
    """How a cell ended by its records, or "pending"."""
    return str(records[-1]["status"]) if records and records[-1]["kind"] == "end" else "pending"
