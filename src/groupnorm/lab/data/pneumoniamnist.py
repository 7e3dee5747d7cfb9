"""PneumoniaMNIST: chest X-rays, in one npz file."""

from __future__ import annotations

import zipfile
import zlib
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import torch

from groupnorm.lab.data.data_paths import Place, obtain
from groupnorm.lab.data.download import from_url
from groupnorm.lab.data.errors import DataError
from groupnorm.lab.data.source import Source, Split

FILE = "pneumoniamnist.npz"
URL = f"https://zenodo.org/records/10519652/files/{FILE}"
MD5 = "28209eda62fecd6e6a2d98b1501bb15f"
CLASSES = ("normal", "pneumonia")
NOTE = "the official test images validate; the official validation images are not used"


def open_pneumoniamnist(data_dir: Path) -> Source:
    """4,708 + 624 images ``[1, 28, 28]``: training and test images of the official split.

    Source: Yang et al. 2023, MedMNIST v2, https://doi.org/10.1038/s41597-022-01721-8.

    Raises:
        DataError: the file is nowhere and cannot be downloaded, or is damaged.
    """
    places = [Place(data_dir / "pneumoniamnist", (FILE,)), Place(data_dir, (FILE,))]
    get = partial(from_url, URL, MD5, f"pneumoniamnist/{FILE}", data_dir)
    path = obtain("pneumoniamnist", places, get).folder / FILE
    return Source(_read(path, "train"), _read(path, "test"), CLASSES, NOTE)


def _read(path: Path, split: str) -> Split:
    try:
        with np.load(BytesIO(path.read_bytes()), allow_pickle=False) as file:
            images, labels = file[f"{split}_images"], file[f"{split}_labels"]
        if not (images.dtype == labels.dtype == np.uint8 and images.ndim == 3 and labels.shape == (len(images), 1)):
            raise ValueError(f"{images.dtype} {split} images {images.shape}, {labels.dtype} labels {labels.shape}")
        if labels.max() >= len(CLASSES):
            raise ValueError(f"{split} labels up to {labels.max()}")
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is not the file of PneumoniaMNIST ({error}); replace it") from error
    return Split.in_memory(torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels[:, 0]).long())
