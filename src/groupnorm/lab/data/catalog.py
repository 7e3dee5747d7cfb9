"""One row per dataset: what it is, where it comes from, and what opens it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from groupnorm.errors import UnknownNameError
from groupnorm.lab.data.cifar10 import open_cifar10
from groupnorm.lab.data.digits import open_digits
from groupnorm.lab.data.errors import DataError
from groupnorm.lab.data.folder import open_folder
from groupnorm.lab.data.function import open_function
from groupnorm.lab.data.imagenet import open_imagenet
from groupnorm.lab.data.mnist import open_fashion_mnist, open_mnist
from groupnorm.lab.data.pneumoniamnist import open_pneumoniamnist
from groupnorm.lab.data.source import Source


@dataclass(frozen=True)
class DatasetRow:
    """A dataset of the catalog.

    Attributes:
        name: how it is written on the command line and in :func:`groupnorm.lab.data.load`.
        title: what it shows, and how many training and validation images it has.
        shape: of one image, (C, H, W), and its values.
        source: authors and year.
        licence: as its authors state it.
        obtained: where its files come from.
        open: from the folder that holds the datasets to the dataset.
    """

    name: str
    title: str
    shape: str
    source: str
    licence: str
    obtained: str
    open: Callable[[Path], Source]


DATASETS: dict[str, DatasetRow] = {
    row.name: row
    for row in (
        DatasetRow(
            "digits",
            "handwritten digits, 1,200 + 597",
            "(1, 8, 8), 0..16",
            "Alpaydin & Kaynak 1998",
            "CC BY 4.0",
            "comes with scikit-learn",
            open_digits,
        ),
        DatasetRow(
            "fashion-mnist",
            "garments, 60,000 + 10,000",
            "(1, 28, 28), 0..255",
            "Xiao, Rasul & Vollgraf 2017, arXiv:1708.07747",
            "MIT",
            "read from the data folder, else downloaded (30 MB)",
            open_fashion_mnist,
        ),
        DatasetRow(
            "mnist",
            "handwritten digits, 60,000 + 10,000",
            "(1, 28, 28), 0..255",
            "LeCun, Bottou, Bengio & Haffner 1998",
            "CC BY-SA 3.0",
            "read from the data folder, else downloaded (12 MB)",
            open_mnist,
        ),
        DatasetRow(
            "cifar10",
            "photographs of ten classes, 50,000 + 10,000",
            "(3, 32, 32), 0..255",
            "Krizhevsky 2009",
            "none stated; research use",
            "read from the data folder, originals or JPEG copies, else downloaded (170 MB)",
            open_cifar10,
        ),
        DatasetRow(
            "pneumoniamnist",
            "chest X-rays, normal or pneumonia, 4,708 + 624",
            "(1, 28, 28), 0..255",
            "Yang et al. 2023, doi:10.1038/s41597-022-01721-8",
            "CC BY 4.0",
            "read from the data folder, else downloaded (4 MB)",
            open_pneumoniamnist,
        ),
        DatasetRow(
            "imagenet",
            "photographs of 1,000 classes, 1,281,167 + 50,000, or a part of them",
            "(3, 224, 224), 0..255",
            "Russakovsky et al. 2015, arXiv:1409.0575",
            "non-commercial research and education",
            "yours, from https://image-net.org: imagenet/train/CLASS and imagenet/val/CLASS in the data folder; read "
            "on demand",
            open_imagenet,
        ),
    )
}

OWN: dict[str, str] = {
    "folder:PATH": "your own images, a folder for each class: PATH/train/CLASS/*.jpg and PATH/val/CLASS/*.jpg",
    "package.module:function": "your own: function() returns train_images, train_labels, val_images, val_labels",
}
"""The forms of a name that stand for the user's own data, and what each expects."""

_SEPARATOR = re.compile(r"[/\\]")
"""Parts the folders of a path, here or on Windows; no module has one in its name."""


def open_source(name: str, data_dir: Path, image_size: int | None) -> Source:
    """Find the dataset that ``name`` stands for: a row of the catalog, a folder, or a function.

    Args:
        name: "digits", "folder:PATH" or PATH, or "package.module:function".
        data_dir: where the files of the catalog's datasets lie.
        image_size: for a folder of images, the size to read them at.

    Raises:
        UnknownNameError: it is none of these; lists the known names and the nearest match.
        DataError: the data is missing, damaged or not of the form expected.
    """
    if name in DATASETS:
        return DATASETS[name].open(data_dir)
    if name in ("", "folder:"):
        raise DataError(f"dataset {name!r} has no name; expected one of {', '.join([*DATASETS, *OWN])}")
    path = Path(os.path.expanduser(name.removeprefix("folder:")))
    if os.path.isdir(path):
        return open_folder(path, image_size)
    if name.startswith(("folder:", ".", "~")) or _SEPARATOR.search(name):
        found = "a file, not a folder," if os.path.exists(path) else "no folder"
        raise DataError(
            f"dataset {name!r}: there is {found} {path.absolute()}; expected a folder with train/CLASS/*.jpg and "
            f"val/CLASS/*.jpg, or a name of `groupnorm ls datasets`"
        )
    if ":" in name:
        return open_function(name)
    raise UnknownNameError("dataset", name, [*DATASETS, *OWN])
