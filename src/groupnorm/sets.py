r"""The one definition: which elements share a mean and a variance.

Every normalisation here computes, for element :math:`i` of ``x[N, C, *positions]``,

.. math:: \hat x_i = (x_i - \mu_i) / \sqrt{\sigma_i^2 + \epsilon}, \quad
          \mu_i = \tfrac1m \sum_{k \in S_i} x_k, \quad
          \sigma_i^2 = \tfrac1m \sum_{k \in S_i} (x_k - \mu_i)^2, \quad m = |S_i|

and the normalisations differ in the set :math:`S_i` (Wu & He 2018, eqs. 1-6). A :class:`SharedSet` is that set as
data: it cuts each of the three axes (samples, channels, positions) into equal blocks of neighbours, and two
elements share statistics when they lie in the same block on all three axes. Local response norms have a window that
slides along an axis instead. The reference implementation, the words of the catalog and the pictures of the cubes are
all derived from it.
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


@dataclass(frozen=True)
class Window:
    """Each index of the axis with its ``size - 1`` neighbours; indices beyond the border count as zeros.

    An even ``size`` reaches one further to the left, as torch's local response norm does. On positions the window is
    a square (a cube) over all spatial axes.
    """

    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ArgumentError(f"Window(size={self.size}): expected at least 1")

    @property
    def reach(self) -> tuple[int, int]:
        """How many neighbours before and after an index."""
        return self.size // 2, (self.size - 1) // 2


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
        merged: ``channels`` cuts the axis that channels and positions form together, and ``positions`` is ``ALL``.

    Raises:
        ArgumentError: a window beside an axis that is cut into anything but single indices, or a merged axis with
            positions of its own.

    Source: Wu & He 2018 (arXiv:1803.08494), section 3.1; Summers & Dinneen 2020 (arXiv:1906.03548) for blocks
    of samples; Zhou et al. 2020 (arXiv:2012.02782) for the merged axis; Krizhevsky et al. 2012 for windows.
    """

    samples: Blocks
    channels: Blocks | Window
    positions: Blocks | Window = ALL
    merged: bool = False

    def __post_init__(self) -> None:
        rest = {self.samples, *(axis for axis in (self.channels, self.positions) if isinstance(axis, Blocks))}
        if self.windows and (self.merged or rest != {EACH}):
            raise ArgumentError(f"{self}: expected EACH on the axes without a window")
        if self.merged and self.positions != ALL:
            raise ArgumentError(f"{self}: expected positions=ALL, for the channels cut the merged axis")

    @property
    def windows(self) -> bool:
        """Whether the sets overlap, because they are windows."""
        return isinstance(self.channels, Window) or isinstance(self.positions, Window)

    def blocks(self, shape: torch.Size | tuple[int, ...]) -> tuple[int, int, int, int, int, int]:
        """Shape of the view in which axes 1, 3 and 5 are the members of a set, and 0, 2 and 4 name it.

        Args:
            shape: ``(N, C, *positions)``.

        Raises:
            ArgumentError: the sets are windows, which overlap.
            ShapeError: the shape has fewer than two axes.
            DivisibilityError: an axis does not divide into the blocks asked for.
        """
        n, c, *lengths = _checked(shape)
        if not (isinstance(self.channels, Blocks) and isinstance(self.positions, Blocks)):
            raise ArgumentError(f"{self} has windows; expected blocks, which do not overlap: use members()")
        p = math.prod(lengths)
        channels, c, p = ("channels x positions", c * p, 1) if self.merged else ("channels", c, p)
        return (
            *self.samples.split(n, "samples"),
            *self.channels.split(c, channels),
            *self.positions.split(p, "positions"),
        )

    def size(self, shape: torch.Size | tuple[int, ...]) -> int:
        """Number of elements ``m = |S_i|`` that share one mean and one variance in an input of ``shape``.

        Of a window this is its full size, because zeros beyond the border are counted.
        """
        if not self.windows:
            return math.prod(self.blocks(shape)[1::2])
        axes = (self.channels, *[self.positions] * len(_checked(shape)[2:]))
        return math.prod(axis.size for axis in axes if isinstance(axis, Window))

    def labels(self, shape: torch.Size | tuple[int, ...]) -> Tensor:
        """An int64 tensor of ``shape`` holding, for each element, the number of the set it belongs to.

        Raises:
            ArgumentError: the sets are windows, which overlap.
        """
        blocks = self.blocks(shape)
        sets = torch.arange(math.prod(blocks[0::2])).view(blocks[0], 1, blocks[2], 1, blocks[4], 1)
        return sets.expand(blocks).reshape(tuple(shape))

    def members(self, shape: torch.Size | tuple[int, ...], index: tuple[int, ...]) -> Tensor:
        """A boolean tensor of ``shape``: the set ``S_i`` of the element ``i`` at ``index``."""
        if not self.windows:
            labels = self.labels(shape)
            return labels == labels[index]
        inside = torch.ones(tuple(_checked(shape)), dtype=torch.bool)
        for axis, (length, i) in enumerate(zip(shape, index, strict=True)):
            cut = (self.samples, self.channels, self.positions)[min(axis, 2)]
            before, after = cut.reach if isinstance(cut, Window) else (0, 0)
            near = (torch.arange(length) >= i - before) & (torch.arange(length) <= i + after)
            inside &= near.view(-1, *[1] * (len(shape) - axis - 1))
        return inside

    def words(self, sample: str = "sample", channel: str = "channel", position: str = "position") -> str:
        """The set in words: "each sample and group of channels, over all positions".

        Args:
            sample: what an index of the first axis is called; those of a weight are filters.
            channel: the same for the second axis.
            position: the same for the others.
        """
        words = [_words(self.samples, sample)]
        if self.merged:
            words.append((f"group of the merged {channel}s and {position}s", ""))
        else:
            words += [_words(self.channels, channel), _words(self.positions, position)]
        each, over = ([part for part in column if part] for column in zip(*words, strict=True))
        parts = [f"each {' and '.join(each)}" if each else "", f"over {' and '.join(over)}" if over else ""]
        return ", ".join(part for part in parts if part)


def _checked(shape: torch.Size | tuple[int, ...]) -> torch.Size | tuple[int, ...]:
    if len(shape) < 2:
        raise ShapeError(f"got shape {tuple(shape)}; expected (N, C, *positions) with at least two axes")
    return shape


def _words(cut: Blocks | Window, noun: str) -> tuple[str, str]:
    """What an axis says of a set: "each ..." and "over all ..."; one of them may be empty."""
    if isinstance(cut, Window):
        return "", f"{cut.size} neighbouring {noun}s" + (" a side" if noun == "position" else "")
    if cut == EACH:
        return noun, ""
    if cut == ALL:
        return "", f"all {noun}s"
    return (f"group of {noun}s" if cut.count is not None else f"block of {cut.size} {noun}s"), ""


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


def ghost_set(size: int) -> SharedSet:
    """Ghost batch norm: ``size`` samples, each channel (Hoffer et al. 2017)."""
    return SharedSet(samples=Blocks(size=size), channels=EACH)


def general_set(size: int, num_groups: int) -> SharedSet:
    """General batch/group norm: ``size`` samples, ``num_groups`` blocks of channels (Summers & Dinneen 2020)."""
    return SharedSet(samples=Blocks(size=size), channels=Blocks(count=num_groups))


def merged_set(num_groups: int) -> SharedSet:
    """Batch group norm: all samples, ``num_groups`` blocks of the merged (C, H, W) axis (Zhou et al. 2020)."""
    return SharedSet(samples=ALL, channels=Blocks(count=num_groups), merged=True)
