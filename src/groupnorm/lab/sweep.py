"""Which cells are left, and their training in parallel worker processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from groupnorm.lab.cell import FINAL, Cell
from groupnorm.lab.records import Record, RunFolder

WORKER = "GROUPNORM_WORKER"
"""Environment variable by which a worker process knows itself."""

Event = dict[str, Any]
"""A record of a cell with its id under "cell", or {"kind": "begin" | "progress"}."""


def unfinished(cells: Sequence[Cell], run: RunFolder) -> list[Cell]:
    """The cells that have no final result yet, the longest first, so that the last ones end together."""
    left = [cell for cell in cells if _status(run.cell(cell.id).records()) not in FINAL]
    return sorted(left, key=lambda cell: cell.statistics_batch)


def sweep(cells: Sequence[Cell], run: RunFolder, workers: int, data_dir: Path | None) -> Generator[Event, None, None]:
    """Train the cells and yield events as they happen.

    A worker that dies ends its cell as crashed, and the sweep goes on. Closing the iterator, or an exception in
    its consumer, ends the workers; what they recorded stays.

    Args:
        cells: what to train, in this order.
        run: where the records go.
        workers: number of processes, one cell each at a time.
        data_dir: where the datasets lie.
    """
    events: SimpleQueue[tuple[_Worker, Event | None]] = SimpleQueue()
    left = list(cells)
    active: set[_Worker] = set()

    def next_cell(worker: _Worker) -> Iterator[Event]:
        if left:
            worker.give(left.pop(0), data_dir)
            yield {"kind": "begin", "cell": worker.cell_id}
        else:
            active.discard(worker)
            worker.stop()

    try:
        for _ in range(min(workers, len(left))):
            worker = _Worker(run, events)
            active.add(worker)
            yield from next_cell(worker)
        while active:
            worker, event = events.get()
            if event is not None:
                yield event
                if event["kind"] == "end":
                    yield from next_cell(worker)
            elif worker in active:  # its output ended before its cell did
                active.discard(worker)
                yield worker.crashed()
                if left:
                    worker = _Worker(run, events)
                    active.add(worker)
                    yield from next_cell(worker)
    finally:
        for worker in active:
            worker.kill()


class _Worker:
    """A worker process, and the thread that turns its output into events."""

    def __init__(self, run: RunFolder, events: SimpleQueue[tuple[_Worker, Event | None]]) -> None:
        self.run, self.cell_id = run, ""
        path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)  # what the parent can import, it can
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", WORKER: "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "groupnorm.lab.worker", str(run.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
            bufsize=1,
            start_new_session=True,  # an interrupt at the terminal is the parent's to handle
        )
        threading.Thread(target=self._listen, args=(events,), daemon=True).start()
        threading.Thread(target=self._reap, daemon=True).start()

    def give(self, cell: Cell, data_dir: Path | None) -> None:
        self.cell_id = cell.id
        task = {"cell": cell.model_dump(), "data_dir": str(data_dir) if data_dir else None}
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died while idle; its listener reports that
            self.process.stdin.write(json.dumps(task) + "\n")

    def stop(self) -> None:
        """Let it end by itself: it has no cell, and nothing more will come."""
        self._close_input()
        self.process.wait(timeout=60)

    def kill(self) -> None:
        """End it with its cell unfinished."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self._close_input()
        self.process.wait()

    def _close_input(self) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()

    def crashed(self) -> Event:
        """Record that the process died with its cell unfinished."""
        code = self.process.wait()  # before its input closes, or it would end by that, with exit code 0
        self._close_input()
        cause = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        memory = "; out of memory?" if cause.endswith("SIGKILL") else ""
        record: Record = {
            "kind": "end",
            "status": "crashed",
            "reason": f"the worker {cause}{memory}; see cells/{self.cell_id}/log.txt",
        }
        folder = self.run.cell(self.cell_id)
        if _status(records := folder.records()) != "pending":  # it died after its last record, before telling
            return {"cell": self.cell_id, **records[-1]}
        folder.append(record)
        return {"cell": self.cell_id, **record}

    def _reap(self) -> None:
        """When the process ends, end what it started too: a child would keep its output open, and the sweep waiting."""
        self.process.wait()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def _listen(self, events: SimpleQueue[tuple[_Worker, Event | None]]) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                events.put((self, json.loads(line)))
        events.put((self, None))


def _status(records: list[Record]) -> str:
    return str(records[-1]["status"]) if records and records[-1]["kind"] == "end" else "pending"
