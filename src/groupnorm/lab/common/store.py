"""The only door to the disk: a run folder with one folder of JSON lines per cell.

.. code-block:: text

    runs/NAME/
      run.json                  the request: command, configuration, cells
      cells/CELL/records.jsonl  one "start", then an "epoch" each, then an "end"
      cells/CELL/checkpoint.pt  only while the cell is unfinished
      cells/CELL/log.txt        what the worker printed
      report.html, figures/, table.csv, tensorboard/

Appending survives a kill at any moment: a torn last line is dropped, and the checkpoint says how many records
it stands for. Whole files are written beside their place and moved there, so that they are never half written.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from groupnorm.files import RunFolderError, writable, write_atomically
from groupnorm.lab.common.record_schema import cells_of, problem_of
from groupnorm.lab.common.text import readable
from groupnorm.lab.common.trial import Cell

Record = dict[str, Any]

Files = dict[str, bytes]
"""The content of files by their names."""


class CellFolder:
    """The records of one cell."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def records(self) -> list[Record]:
        """All records up to the first that is torn by a kill or damaged, in order.

        Raises:
            RunFolderError: the file cannot be read, or a whole record is not one of this version.
        """
        path = self.path / "records.jsonl"
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise RunFolderError(
                f"cannot read {path}: {error.strerror or error}; expected a file in a run folder that `groupnorm "
                f"compare --out` wrote: repair it, or choose another --out"
            ) from error
        found: list[Record] = []
        for number, line in enumerate(data.splitlines(keepends=True), start=1):
            record = _parsed(line) if line.endswith(b"\n") else None
            if not isinstance(record, dict) or "kind" not in record:
                break
            if problem := problem_of(record):
                raise RunFolderError(
                    f"{path}, line {number}: {problem}: the file was changed, or written by another version of "
                    f"groupnorm; use that version, or remove {self.path} to train the cell again"
                )
            found.append(record)
        return found

    def append(self, record: Record) -> None:
        """Add one record, over a last line torn by a kill; it is on the disk when this returns."""
        with writable(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self._append(record)

    def _append(self, record: Record) -> None:
        with open(self.path / "records.jsonl", "a+b") as file:
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
            file.write(json.dumps(record).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def keep(self, count: int) -> list[Record]:
        """Drop all but the first ``count`` records and return them."""
        kept = self.records()[:count]
        if (self.path / "records.jsonl").exists():
            lines = b"".join(json.dumps(record).encode() + b"\n" for record in kept)
            write_atomically(self.path / "records.jsonl", lines)
        return kept

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Write the state of an unfinished training, with the number of records it stands for."""
        import torch

        content = io.BytesIO()  # not into the file: torch hides what the system says when a disk is full
        torch.save({"records": len(self.records()), "state": state}, content)
        write_atomically(self.path / "checkpoint.pt", content.getbuffer())

    def load_checkpoint(self) -> tuple[int, dict[str, Any]] | None:
        """``(number of records, state)`` of the last checkpoint; None when there is none, or it is damaged."""
        import torch

        path = self.path / "checkpoint.pt"
        if not path.exists():
            return None
        try:
            with zipfile.ZipFile(path) as parts:
                if damaged := parts.testzip():  # torch does not look at the checksums
                    raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
            saved = torch.load(path, map_location="cpu", weights_only=True)
            return saved["records"], saved["state"]
        except Exception as error:  # torch.load raises whatever the bytes lead it to
            print(f"{path} is damaged and not used: {type(error).__name__}: {error}")
            return None

    def drop_checkpoint(self) -> None:
        """Remove the checkpoint: the cell is finished, or begins anew."""
        with writable(self.path):
            (self.path / "checkpoint.pt").unlink(missing_ok=True)

    def pack(self) -> Files:
        """The records and the checkpoint, to go on with them on another machine."""
        paths = (self.path / name for name in ("records.jsonl", "checkpoint.pt"))
        return {path.name: path.read_bytes() for path in paths if path.exists()}

    def unpack(self, files: Files) -> None:
        """Put what :meth:`pack` gave in the place of what is here; the records first, as when they were made."""
        if "records.jsonl" in files:
            write_atomically(self.path / "records.jsonl", files["records.jsonl"])
        if "checkpoint.pt" in files:
            write_atomically(self.path / "checkpoint.pt", files["checkpoint.pt"])
        else:
            self.drop_checkpoint()

    @contextmanager
    def lock(self, timeout: float = 30.0) -> Iterator[None]:
        """Hold the cell: a worker left over from a killed sweep may still be dying."""
        with _lock(self.path / "lock", timeout, f"cell {self.path.name}"):
            yield


class RunFolder:
    """All that one sweep reads and writes."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def cell(self, cell_id: str) -> CellFolder:
        """The folder of the cell with this id, whether it exists or not."""
        return CellFolder(self.path / "cells" / cell_id)

    def write_request(self, request: Record) -> None:
        """Record what was asked for: command, configuration and cells."""
        self.write("run.json", json.dumps(request))  # indented, 10,000 cells would take ten times as long

    def request(self) -> Record:
        """What was asked for.

        Raises:
            RunFolderError: the folder holds no run, or one that this version does not read.
        """
        path = self.path / "run.json"
        try:
            request = _parsed(path.read_bytes())
        except OSError as error:
            raise RunFolderError(
                f"{self.path} holds no run.json that can be read ({error.strerror}); expected a folder that `groupnorm "
                f"compare --out` wrote"
            ) from None
        if not isinstance(request, dict) or "cells" not in request:
            raise RunFolderError(f"{path} is damaged; expected a request with cells: run the same compare again")
        if not isinstance(request.get("dataset") or {}, dict):
            raise RunFolderError(
                f"{path}: dataset is {request['dataset']!r}; expected a dictionary: run the same compare again"
            )
        return request

    def cells(self, request: Record) -> list[Cell]:
        """The cells of a request of this folder, in their order.

        Raises:
            RunFolderError: they are not those of this version.
        """
        try:
            return cells_of(request)
        except ValueError as error:
            raise RunFolderError(
                f"{self.path / 'run.json'}: {error}; expected cells as this version of groupnorm writes them: use the "
                f"version that wrote them, or run the same compare again"
            ) from None

    def write(self, name: str, content: str | bytes) -> Path:
        """Write a whole file below the folder and return its path."""
        path = self.path / name
        write_atomically(path, content.encode() if isinstance(content, str) else content)
        return path

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run: two sweeps in one folder would train the same cells twice."""
        with _lock(self.path / "lock", 0.0, f"run {self.path}"):
            yield


def _parsed(data: bytes) -> Any:
    """The value that some JSON stands for, with readable text; None where it is none."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):  # RecursionError: brackets without end
        return None
    return readable(value) if b"\\ud" in data.lower() or b"\xed" in data else value  # else it has no surrogate


@contextmanager
def _lock(path: Path, timeout: float, what: str) -> Iterator[None]:
    lock = FileLock(path)
    with writable(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=timeout)
        except Timeout:  # an OSError too
            raise RunFolderError(
                f"{what} is being written by another process (it holds {path}); wait for it, or stop it"
            ) from None
    try:
        yield
    finally:
        lock.release()
