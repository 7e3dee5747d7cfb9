"""Handwritten digits 8x8, bundled with scikit-learn."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from groupnorm.lab.data.source import Source, Split, permutation

TRAIN = 1200
"""Training images; the other 597 validate."""


def open_digits(data_dir: Path) -> Source:
    """1,797 images ``[1, 8, 8]`` of values 0..16 (how many of 16 pixels were inked), split by a fixed permutation.

    Args:
        data_dir: not used; the images come with scikit-learn.

    Source: Alpaydin & Kaynak 1998, https://doi.org/10.24432/C50P49.
    """
    table = torch.from_numpy(_table())
    images, labels = table[:, :-1].to(torch.uint8).view(-1, 1, 8, 8), table[:, -1].long()
    train, val = permutation(len(labels)).tensor_split([TRAIN])
    return Source(
        Split.in_memory(images[train], labels[train]),
        Split.in_memory(images[val], labels[val]),
        tuple("0123456789"),
    )


def _table() -> np.ndarray[Any, np.dtype[np.float64]]:
    """A row for each image: 64 pixels and the digit.

    The file is read beside scikit-learn, whose import takes seconds, in every worker of a sweep.
    """
    package = find_spec("sklearn")
    path = Path(package.origin).parent / "datasets/data/digits.csv.gz" if package and package.origin else None
    if path is None or not path.exists():
        from sklearn.datasets import load_digits

        return np.column_stack(load_digits(return_X_y=True))
    return np.loadtxt(path, delimiter=",")
