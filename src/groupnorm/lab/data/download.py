"""Download: never half a file, and never a wait without end."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from groupnorm.lab.data.errors import DataError

STALL_SECONDS = 10.0
"""A download that has written nothing for so long is given up."""


def download(what: str, get: Callable[[Path], None], keep: str, data_dir: Path) -> None:
    """Download files and move them below ``data_dir``.

    The files are written to a temporary folder in ``data_dir`` and moved with :func:`os.replace` when the whole
    download has ended and has been checked, so that an interrupted one leaves nothing that could be taken for
    complete. The download runs in a thread because a socket's time limit does not cover the look-up of the host's
    name, nor bound the number of addresses that are tried.

    Args:
        what: what is downloaded, for errors.
        get: downloads into the folder that it is given, and checks the result.
        keep: glob pattern, below that folder, of the files to keep.
        data_dir: where to put them; made if need be.

    Raises:
        DataError: the download failed or stalled, or ``data_dir`` cannot be written.
    """
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=data_dir, ignore_cleanup_errors=True) as folder:
            _run(what, get, Path(folder))
            for file in sorted(Path(folder).glob(keep)):
                target = data_dir / file.relative_to(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(file, target)
    except OSError as error:
        raise DataError(f"{what} could not be written to {data_dir}: {error}") from error


def from_torchvision(dataset: str, keep: str, data_dir: Path) -> None:
    """Let a class of ``torchvision.datasets`` download; it knows addresses and checksums.

    Args:
        dataset: name of the class, such as "FashionMNIST".
        keep: as in :func:`download`.
        data_dir: as in :func:`download`.

    Raises:
        DataError: as in :func:`download`.
    """

    def get(folder: Path) -> None:
        from torchvision import datasets

        getattr(datasets, dataset)(str(folder), download=True)

    download(f"torchvision.datasets.{dataset}", get, keep, data_dir)


def from_url(url: str, md5: str, target: str, data_dir: Path) -> None:
    """Download one file.

    Args:
        url: its address.
        md5: checksum as published.
        target: its name below ``data_dir``.
        data_dir: as in :func:`download`.

    Raises:
        DataError: as in :func:`download`.
    """

    def get(folder: Path) -> None:
        from torchvision.datasets import utils

        path = folder / target
        utils.download_url(url, str(path.parent), path.name, md5)

    download(url, get, target, data_dir)


def _run(what: str, get: Callable[[Path], None], folder: Path) -> None:
    """Download into ``folder``, and wait for as long as its files grow."""
    failures: list[Exception] = []

    def work() -> None:
        try:
            get(folder)
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=work, name=f"download {what}", daemon=True)
    thread.start()
    written, before = 0, -1
    while thread.is_alive() and written > before:
        thread.join(STALL_SECONDS)
        written, before = _bytes_below(folder), written
    if failures:
        error = failures[0]
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(f"{what}: {reason}") from error
    if thread.is_alive():
        raise DataError(f"{what}: nothing arrived for {STALL_SECONDS:g} s")


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
