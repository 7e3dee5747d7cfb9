"""Where datasets lie on disk, and what to say when they are nowhere."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from groupnorm.lab.data.errors import DataError

DATA_DIR_VARIABLE = "GROUPNORM_DATA_DIR"


def default_data_dir() -> Path:
    """``$GROUPNORM_DATA_DIR``, else ``groupnorm`` in ``$XDG_CACHE_HOME``, else ``~/.cache/groupnorm``."""
    if chosen := os.environ.get(DATA_DIR_VARIABLE):
        return Path(os.path.expanduser(chosen))
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "groupnorm"


@dataclass(frozen=True)
class Place:
    """A folder and the files that make a dataset there.

    Attributes:
        folder: the directory looked in; it need not exist.
        files: names of the files, all of which are needed.
    """

    folder: Path
    files: tuple[str, ...]

    def missing(self) -> list[str]:
        """The files that are not there."""
        return [name for name in self.files if not (self.folder / name).is_file()]


def obtain(name: str, places: Sequence[Place], download: Callable[[], None]) -> Place:
    """The first place that has all its files; ``download`` is called once when none has.

    Args:
        name: the dataset, for the error.
        places: where to look, best first.
        download: puts the files in one of the places, or raises :class:`DataError`.

    Raises:
        DataError: no place is complete and the download failed. Names every place and what it lacks.
    """
    for place in places:
        if not place.missing():
            return place
    looked = "\n".join(f"  {place.folder}: {_state(place)}" for place in places)
    try:
        download()
        return next(place for place in places if not place.missing())
    except (DataError, StopIteration) as error:
        failure = str(error) or "it ended without an error and without the files"
        raise DataError(
            f"dataset {name!r} was not found; looked in\n{looked}\na download was tried and failed: {failure}\n"
            f"put the files in one of these folders, or name the folder that has them: "
            f"--data-dir, or the environment variable {DATA_DIR_VARIABLE}"
        ) from error


def _state(place: Place) -> str:
    missing = place.missing()
    if not place.folder.is_dir():
        return f"no such directory (expected {', '.join(place.files)})"
    return f"lacks {', '.join(missing)}"
