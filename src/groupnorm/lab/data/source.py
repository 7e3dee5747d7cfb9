"""A dataset before it is read: labels at hand, images on demand, so that a limit saves the reading."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from groupnorm.lab.data.dataset import Images
from groupnorm.lab.data.errors import DataError


@dataclass(frozen=True)
class Split:
    """One half of a dataset.

    Attributes:
        labels: ``[n]``, int64.
        read: from indices ``[k]`` to those images, ``[k, C, H, W]``, uint8 or float32, in memory or on disk.
    """

    labels: Tensor
    read: Callable[[Tensor], Images]

    @classmethod
    def in_memory(cls, images: Tensor, labels: Tensor) -> Split:
        """A split whose images ``[n, C, H, W]`` have been read already."""
        return cls(labels, images.__getitem__)


@dataclass(frozen=True)
class Source:
    """A dataset that has been found and can be read.

    Attributes:
        train: the training split.
        val: the validation split.
        classes: the name of each class, by label.
        note: a caveat to show beside results; "" if none.
        statistics: mean and standard deviation of each channel as published, ``[3, 1, 1]`` each, in stored units;
            None to compute them. Images on disk have them.
    """

    train: Split
    val: Split
    classes: tuple[str, ...]
    note: str = ""
    statistics: tuple[Tensor, Tensor] | None = None


def permutation(n: int) -> Tensor:
    """The fixed order ``[n]`` of every split, subset and shuffle of this package."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))


def choose(available: int, limit: int | None, what: str) -> Tensor:
    """Indices of the images to read: all in their order, or the first ``limit`` of the fixed permutation.

    A smaller limit therefore is a subset of a larger one.

    Args:
        available: number of images that there are.
        limit: number wanted; None for all.
        what: name of the limit, for the error.

    Raises:
        DataError: ``limit`` is not in ``1 .. available``.
    """
    if limit is None:
        return torch.arange(available)
    if not 1 <= limit <= available:
        raise DataError(f"{what}={limit}; {available} images are available: use 1 to {available}, or no limit")
    return permutation(available)[:limit]
