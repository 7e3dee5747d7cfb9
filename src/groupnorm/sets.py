r"""The one definition: which elements share a mean and a variance.

Every normalisation here computes, for element :math:`i` of ``x[N, C, *positions]``,

.. math:: \hat x_i = (x_i - \mu_i) / \sqrt{\sigma_i^2 + \epsilon}, \quad
          \mu_i = \tfrac1m \sum_{k \in S_i} x_k, \quad
          \sigma_i^2 = \tfrac1m \sum_{k \in S_i} (x_k - \mu_i)^2, \quad m = |S_i|

and the normalisations differ only in the set :math:`S_i` (Wu & He 2018, eqs. 1-6). A :class:`SharedSet` is
that set as data: it cuts each of the three axes (samples, channels, positions) into equal blocks of
neighbours, and two elements share statistics when they lie in the same block on all three axes.
The reference implementation and the pictures of the cubes are both derived from it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from groupnorm.errors import ArgumentError, DivisibilityError, ShapeError


@dataclass(frozen=True)
class Blocks:
    """A partition of one axis into equal blocks: either ``count`` blocks or blocks of ``size`` elements."""

    count: int | None = None
    size: int | None = None

    def __post_init__(self) -> None:
        given = [v for v in (self.count, self.size) if v is not None]
        if len(given) != 1 or given[0] < 1:
            raise ArgumentError(
                f"Blocks(count={self.count}, size={self.size}): expected exactly one of the two, at least 1"
            )

    def split(self, length: int, axis: str = "length") -> tuple[int, int]:
        """``(number of blocks, elements per block)`` of an axis of ``length`` elements; ``axis`` names it in errors."""
        parts = self.count if self.count is not None else self.size
        assert parts is not None
        if length % parts:
            raise DivisibilityError(length, parts, axis=axis, what="size" if self.count is None else "count")
        return (parts, length // parts) if self.count is not None else (length // parts, parts)


EACH = Blocks(size=1)
"""Every index of the axis has statistics of its own."""
ALL = Blocks(count=1)
"""All indices of the axis share statistics."""


@dataclass(frozen=True)
class SharedSet:
    """Which samples, channels and positions share a mean and a variance.

    Args:
        samples: how the batch axis is cut; ``ALL`` for batch norm, ``EACH`` for group norm.
        channels: how the channel axis is cut; ``Blocks(count=32)`` for group norm with 32 groups.
        positions: how the flattened spatial axes are cut; ``ALL`` for the four norms of the paper.

    Source: Wu & He 2018 (arXiv:1803.08494), section 3.1; Summers & Dinneen 2020 (arXiv:1906.03548) for blocks
    of samples.
    """

    samples: Blocks
    channels: Blocks
    positions: Blocks = ALL

    def blocks(self, shape: torch.Size | tuple[int, ...]) -> tuple[int, int, int, int, int, int]:
        """Shape of the view in which axes 1, 3 and 5 are the members of a set, and 0, 2 and 4 name it.

        Args:
            shape: ``(N, C, *positions)``.

        Raises:
            ShapeError: the shape has fewer than two axes.
            DivisibilityError: an axis does not divide into the blocks asked for.
        """
        if len(shape) < 2:
            raise ShapeError(f"got shape {tuple(shape)}; expected (N, C, *positions) with at least two axes")
        n, c = shape[:2]
        return (
            *self.samples.split(n, "samples"),
            *self.channels.split(c, "channels"),
            *self.positions.split(math.prod(shape[2:]), "positions"),
        )

    def size(self, shape: torch.Size | tuple[int, ...]) -> int:
        """Number of elements ``m = |S_i|`` that share one mean and one variance in an input of ``shape``."""
        return math.prod(self.blocks(shape)[1::2])

    def labels(self, shape: torch.Size | tuple[int, ...]) -> Tensor:
        """An int64 tensor of ``shape`` holding, for each element, the number of the set it belongs to."""
        blocks = self.blocks(shape)
        sets = torch.arange(math.prod(blocks[0::2])).view(blocks[0], 1, blocks[2], 1, blocks[4], 1)
        return sets.expand(blocks).reshape(tuple(shape))


def batch_set() -> SharedSet:
    """Batch norm: all samples, each channel (Ioffe & Szegedy 2015)."""
    return SharedSet(samples=ALL, channels=EACH)


def layer_set() -> SharedSet:
    """Layer norm over (C, H, W): each sample, all channels (Ba et al. 2016)."""
    return SharedSet(samples=EACH, channels=ALL)


def instance_set() -> SharedSet:
    """Instance norm: each sample, each channel (Ulyanov et al. 2016)."""
    return SharedSet(samples=EACH, channels=EACH)


def group_set(num_groups: int) -> SharedSet:
    """Group norm: each sample, ``num_groups`` blocks of neighbouring channels (Wu & He 2018)."""
    return SharedSet(samples=EACH, channels=Blocks(count=num_groups))
