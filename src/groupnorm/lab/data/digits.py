"""Handwritten digits 8x8, bundled with scikit-learn."""

from __future__ import annotations

from pathlib import Path

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
    from sklearn.datasets import load_digits

    pixels, target = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).to(torch.uint8).view(-1, 1, 8, 8)
    labels = torch.from_numpy(target).long()
    train, val = permutation(len(labels)).tensor_split([TRAIN])
    return Source(
        Split.in_memory(images[train], labels[train]),
        Split.in_memory(images[val], labels[val]),
        tuple("0123456789"),
    )
