"""Which image files lie in ``train/CLASS`` and ``val/CLASS`` of a folder."""

from __future__ import annotations

import os
from pathlib import Path

from groupnorm.lab.data.errors import DataError
from groupnorm.lab.data.source import permutation

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")

LabelledFile = tuple[str, int]
"""A file's name below the root, with ``/`` between folders, and its label."""


def list_splits(root: Path) -> tuple[tuple[str, ...], list[LabelledFile], list[LabelledFile]]:
    """The classes, the training files and the validation files of a folder.

    The classes are the folders in ``train``, sorted; a validation folder may lack some. The order within a split
    is the fixed permutation of the sorted names, so that classes are mixed.

    Args:
        root: holds ``train`` and either ``val`` or ``test``.

    Raises:
        DataError: a folder is missing or empty, or validation has a class that training has not.
    """
    train, val = _split_folder(root, "train"), _split_folder(root, "val", "test")
    classes = tuple(_folders(train))
    if unknown := set(_folders(val)) - set(classes):
        raise DataError(f"{val} has the classes {sorted(unknown)}, which {train} has not; expected some of {classes}")
    return classes, _list(root, train, classes), _list(root, val, classes)


def images_in(folder: Path) -> list[str]:
    """Names of the image files below ``folder``, relative to it, sorted."""
    found = []
    for where, _, names in os.walk(folder):
        below = Path(where).relative_to(folder).as_posix()
        prefix = "" if below == "." else f"{below}/"
        found += [prefix + name for name in names if name.lower().endswith(SUFFIXES) and not name.startswith(".")]
    return sorted(found)


def _split_folder(root: Path, *names: str) -> Path:
    for name in names:
        if (root / name).is_dir():
            return root / name
    found = _folders(root) if root.is_dir() else "no such directory"
    raise DataError(
        f"{root} has no folder {' or '.join(names)} (found: {found}); expected train/CLASS/*.jpg and "
        f"val/CLASS/*.jpg (or test/) in it"
    )


def _folders(root: Path) -> list[str]:
    return sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _list(root: Path, split: Path, classes: tuple[str, ...]) -> list[LabelledFile]:
    found: list[LabelledFile] = []
    for label, name in enumerate(classes):
        files = images_in(split / name)
        if not files and split.name == "train":
            raise DataError(f"{split / name} has no image; expected files that end in {', '.join(SUFFIXES)}")
        found += [(f"{split.name}/{name}/{file}", label) for file in files]
    if not found:
        raise DataError(f"{split} has no CLASS/IMAGE; expected files that end in {', '.join(SUFFIXES)}")
    return [found[i] for i in permutation(len(found)).tolist()]
