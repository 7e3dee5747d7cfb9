"""CIFAR-10: the original pickled batches, or JPEG copies in two archives."""

from __future__ import annotations

import pickle
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from groupnorm.lab.data.archive import open_archive
from groupnorm.lab.data.data_paths import Place, obtain
from groupnorm.lab.data.download import from_torchvision
from groupnorm.lab.data.errors import DataError
from groupnorm.lab.data.source import Source, Split

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ORIGINAL = "cifar-10-batches-py"
TRAIN_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
TEST_BATCH = "test_batch"
ARCHIVES = ("train.tar.xz", "test.tar.xz")
_HARMLESS = (
    "numpy.ndarray",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "_codecs.encode",
)
JPEG_NOTE = (
    "CIFAR-10 was read from JPEG copies, which are lossy: figures are not comparable with published ones to the decimal"
)


def open_cifar10(data_dir: Path) -> Source:
    """50,000 + 10,000 images ``[3, 32, 32]``; the originals are preferred when JPEG copies are there too.

    Source: Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html.

    Raises:
        DataError: the files are nowhere and cannot be downloaded, or one is damaged.
    """
    places = [Place(data_dir / ORIGINAL, (*TRAIN_BATCHES, TEST_BATCH)), Place(data_dir / "cifar10-jpeg", ARCHIVES)]
    found = obtain("cifar10", places, partial(from_torchvision, "CIFAR10", f"{ORIGINAL}/*", data_dir))
    if found.files != ARCHIVES:
        return Source(_batches(found.folder, TRAIN_BATCHES), _batches(found.folder, (TEST_BATCH,)), CLASSES)
    train, val = (open_archive(found.folder / name, CLASSES, (3, 32, 32)) for name in ARCHIVES)
    return Source(train, val, CLASSES, JPEG_NOTE)


def _batches(folder: Path, names: tuple[str, ...]) -> Split:
    parts = [_batch(folder / name) for name in names]
    images, labels = (torch.from_numpy(np.concatenate(part)) for part in zip(*parts, strict=True))
    return Split.in_memory(images, labels)


def _batch(path: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Images ``[n, 3, 32, 32]``, uint8, and labels ``[n]``, int64, of one pickled batch."""
    try:
        with path.open("rb") as file:
            content = _ArrayUnpickler(file, encoding="bytes").load()
        images = np.asarray(content[b"data"]).reshape(-1, 3, 32, 32)
        labels = np.asarray(content[b"labels"], dtype=np.int64)
        if images.dtype != np.uint8 or labels.shape != images.shape[:1] or not set(labels) <= set(range(10)):
            raise ValueError(f"{images.dtype} images {images.shape} with labels {labels.shape}")
    except Exception as error:  # a damaged pickle may raise anything
        raise DataError(f"{path} is not a batch of CIFAR-10 ({type(error).__name__}: {error}); replace it") from error
    return images, labels


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles arrays and builtin containers, and refuses all else, which could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy", "dtype"):
            return lambda kind, *flags: np.dtype(kind, *map(bool, flags))  # Python 2 pickled 0 and 1, which warn
        if f"{module}.{name}" in _HARMLESS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a batch of images")
