"""Which image files lie in ``train/CLASS`` and ``val/CLASS`` of a folder, and what else does."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

from groupnorm.lab.data.errors import DataError, named, some
from groupnorm.lab.data.source import permutation

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Ends of the names of image files, those of ``torchvision.datasets.ImageFolder``; in any case."""

LabelledFile = tuple[str, int]
"""A file's name below the root, with ``/`` between folders, and its label."""

_ENDINGS = f"files that end in {', '.join(SUFFIXES)}"


class Listing(NamedTuple):
    """The images of a folder.

    Attributes:
        classes: names of the classes, by label.
        train: the training files.
        val: the validation files.
        note: which files were left out, and which classes validation lacks; "" if none.
    """

    classes: tuple[str, ...]
    train: list[LabelledFile]
    val: list[LabelledFile]
    note: str


def list_splits(root: Path) -> Listing:
    """The classes, the training files and the validation files of a folder.

    They are those of ``torchvision.datasets.ImageFolder``, except that hidden files and folders, such as
    ``.ipynb_checkpoints``, are left out. Links to folders are followed, unless they lead back to a folder above.

    The classes are the folders in ``train``, sorted; a validation folder may lack some. The order within a split
    is the fixed permutation of the sorted names, so that classes are mixed. Two names that differ only in how
    Unicode spells the same letters are one class.

    Args:
        root: holds ``train`` and either ``val`` or ``test``.

    Raises:
        DataError: a folder is missing, empty or cannot be listed, there is one class only, or validation has a class
            that training has not.
    """
    left: Counter[str] = Counter()
    train, val = _split_folder(root, "train"), _split_folder(root, "val", "test")
    folders, val_folders = _class_folders(train, left), _class_folders(val, left)
    classes = tuple(folders)
    if unknown := sorted(val_folders.keys() - folders.keys()):
        raise DataError(
            f"{val} has the classes {named(unknown)}, which {train} has not; expected some of {named(classes)}: rename "
            f"or remove their folders"
        )
    train_files = _list(train, folders, classes, left)
    if len(classes) < 2:
        raise DataError(_one_class(train, folders))
    if empty := set(folders.values()) - {file.split("/")[1] for file, _ in train_files}:
        raise DataError(
            f"{train} has no image in the folders {named(sorted(empty))}{_but(left)}; expected {_ENDINGS}: add some, "
            f"or remove the folders"
        )
    val_files = _list(val, val_folders, classes, left)
    notes = [f"left out: {counts}"] if (counts := _counts(left)) else []
    if lacking := len(classes) - len({label for _, label in val_files}):
        notes.append(f"{val.name} has no image of {lacking} of the {len(classes)} classes")
    return Listing(classes, _mixed(train_files), _mixed(val_files), "; ".join(notes))


def images_in(folder: Path, left: Counter[str]) -> list[str]:
    """Names of the image files below ``folder``, relative to it, sorted; counts in ``left`` what is no such file."""
    found: list[str] = []
    waiting = [("", frozenset(map(_identity, folder.absolute().parents)))]
    while waiting:
        prefix, above = waiting.pop()
        entries, here = _entries(folder / prefix), _identity(folder / prefix)
        if here in above:
            left["links to a folder above"] += 1
            continue
        for entry in entries:
            name, ending = entry.name, os.path.splitext(entry.name)[1].lower()
            if _is_folder(entry):
                if name.startswith("."):
                    left[f"{name}/"] += 1
                else:
                    waiting.append((f"{prefix}{name}/", above | {here}))
            elif name.startswith("."):
                left["hidden images"] += ending in SUFFIXES
            elif ending not in SUFFIXES:
                left[f"*{ending}" if ending else "files without an ending"] += 1
            elif _is_pipe(entry):
                left["pipes or devices"] += 1
            else:  # also a link to nothing: reading it tells
                found.append(prefix + name)
    return sorted(found)


def _split_folder(root: Path, *names: str) -> Path:
    for name in names:
        if os.path.isdir(root / name):
            return root / name
    found = sorted(e.name for e in _entries(root) if _is_folder(e))
    raise DataError(
        f"{root} has no folder {' or '.join(names)} (found: {named(found)}); expected train/CLASS/*.jpg and "
        f"val/CLASS/*.jpg (or test/) in it: move the images, or name the folder that holds train and val"
    )


def _class_folders(split: Path, left: Counter[str]) -> dict[str, str]:
    """The name of each class and of its folder, in the order of the classes; counts in ``left`` the rest."""
    found: dict[str, str] = {}
    images = 0
    for entry in _entries(split):
        name = normalize("NFC", entry.name)
        if not _is_folder(entry):
            images += name.lower().endswith(SUFFIXES) and not name.startswith(".")
        elif name.startswith("."):
            left[f"{name}/"] += 1
        elif name in found:
            raise DataError(
                f"{split} has two folders {name!r}, which differ only in how Unicode spells the same letters "
                f"({found[name]!a} and {entry.name!a}); expected one: move the images of both into one"
            )
        else:
            found[name] = entry.name
    if not found:
        raise DataError(
            f"{split} has no folders and {images} images; expected a folder for each class, such as {split.name}/cat "
            f"and {split.name}/dog, with {_ENDINGS}: sort the images into folders"
        )
    if images:
        left["images beside the class folders"] += images
    return dict(sorted(found.items()))


def _list(split: Path, folders: dict[str, str], classes: tuple[str, ...], left: Counter[str]) -> list[LabelledFile]:
    found = [
        (f"{split.name}/{folder}/{file}", classes.index(name))
        for name, folder in folders.items()
        for file in images_in(split / folder, left)
    ]
    if not found:
        raise DataError(f"{split} has no image in its folders{_but(left)}; expected {_ENDINGS}: add some")
    return found


def _mixed(files: list[LabelledFile]) -> list[LabelledFile]:
    return [files[i] for i in permutation(len(files)).tolist()]


def _one_class(train: Path, folders: dict[str, str]) -> str:
    (only,) = folders.values()
    inside = sorted(e.name for e in _entries(train / only) if _is_folder(e) and not e.name.startswith("."))
    remedy = (
        f"if the folders in it are the classes ({named(inside)}), move them into {train}"
        if inside
        else f"add a folder for each other class, such as {train / 'other'}"
    )
    return f"{train} has one class only, {only!r}, so every answer is right; expected two folders or more: {remedy}"


def _but(left: Counter[str]) -> str:
    return f" (left out: {counts})" if (counts := _counts(left)) else ""


def _counts(left: Counter[str]) -> str:
    counts = {what: count for what, count in left.most_common() if count}
    return some([f"{count:,} {_ONE.get(what, what) if count == 1 else what}" for what, count in counts.items()])


_ONE = {
    "files without an ending": "file without an ending",
    "hidden images": "hidden image",
    "images beside the class folders": "image beside the class folders",
    "links to a folder above": "link to a folder above",
    "pipes or devices": "pipe or device",
}
"""What is left out, where it is one."""


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, sorted by name."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(
            f"{folder} cannot be listed ({error.strerror or error}); expected a folder that may be read: change its "
            f"permissions, or choose another"
        ) from error


def _identity(folder: Path) -> tuple[int, int]:
    """What tells a folder from others, whatever the path to it."""
    state = os.stat(folder)
    return state.st_dev, state.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_pipe(entry: os.DirEntry[str]) -> bool:
    """Whether reading it may never end, as of a pipe, a socket or a device."""
    try:
        return not entry.is_file() and os.path.exists(entry.path)
    except OSError:  # a link to itself, whose reading ends in an error
        return False
