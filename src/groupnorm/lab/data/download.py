"""Download through torchvision: never half a file, and never a wait without end."""

from __future__ import annotations

import os
import tempfile
import threading
from pathlib import Path

from groupnorm.lab.data.dataset import DataError

STALL_SECONDS = 10.0
"""A download that has written nothing for so long is given up."""


def download(dataset: str, keep: str, data_dir: Path) -> None:
    """Let a class of ``torchvision.datasets`` download, then move its files below ``data_dir``.

    The files are written to a temporary folder in ``data_dir`` and moved with :func:`os.replace` when the whole
    download has ended and torchvision has checked it, so that an interrupted one leaves nothing that could be
    taken for complete. The download runs in a thread because a socket's time limit does not cover the look-up
    of the host's name, nor bound the number of addresses that are tried.

    Args:
        dataset: name of the class, such as "FashionMNIST".
        keep: glob pattern, below the root given to the class, of the files to keep.
        data_dir: where to put them; made if need be.

    Raises:
        DataError: the download failed or stalled, or ``data_dir`` cannot be written.
    """
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=data_dir, ignore_cleanup_errors=True) as folder:
            _run(dataset, Path(folder))
            for file in sorted(Path(folder).glob(keep)):
                target = data_dir / file.relative_to(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(file, target)
    except OSError as error:
        raise DataError(f"{dataset} could not be written to {data_dir}: {error}") from error


def _run(dataset: str, folder: Path) -> None:
    """Download into ``folder``, and wait for as long as its files grow."""
    from torchvision import datasets

    failures: list[Exception] = []

    def work() -> None:
        try:
            getattr(datasets, dataset)(str(folder), download=True)
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=work, name=f"download {dataset}", daemon=True)
    thread.start()
    written, before = 0, -1
    while thread.is_alive() and written > before:
        thread.join(STALL_SECONDS)
        written, before = _bytes_below(folder), written
    if failures:
        error = failures[0]
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(f"torchvision.datasets.{dataset}: {reason}") from error
    if thread.is_alive():
        raise DataError(f"torchvision.datasets.{dataset}: nothing arrived for {STALL_SECONDS:g} s")


def _bytes_below(folder: Path) -> int:
    """Total size of the files in ``folder``, which another thread is writing."""
    total = 0
    for root, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.stat(os.path.join(root, name)).st_size
            except OSError:
                continue
    return total
