"""Files that are whole or not there, however the process ends."""

from __future__ import annotations

import glob
import os
import platform
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from groupnorm.errors import GroupNormError


class RunFolderError(GroupNormError, RuntimeError):
    """A folder of results that cannot be read or written, or that another process is writing to."""


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that it is either the old one or the whole new one, whenever the process is killed.

    Several may write the same file at the same time: the last whole one stays.
    """
    name = f".{path.name}.{platform.node()}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    temporary = path.with_name(name)  # of this call alone, so that no other writer moves or empties it
    try:
        with writable(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            _drop_abandoned(path)
            with open(temporary, "xb") as file:  # fails where anything has the name, a link to another file too
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _drop_abandoned(path: Path) -> None:
    """Remove what writers of this file left that were killed: processes of this machine that no longer run."""
    here = f".{path.name}.{platform.node()}."
    for left in path.parent.glob(f"{glob.escape(here)}*.tmp"):
        with suppress(ValueError, OSError):
            if not _runs(int(left.name.removeprefix(here).partition(".")[0])):
                left.unlink()


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)
    return True


@contextmanager
def writable(path: Path) -> Iterator[None]:
    """Say what the system says when a folder cannot be written to."""
    try:
        yield
    except OSError as error:
        raise RunFolderError(
            f"cannot write to {path}: {error.strerror or error}; expected a writable folder with space: free some, or "
            f"choose another --out"
        ) from error
