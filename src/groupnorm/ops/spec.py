"""The facts of one call that decide how it is computed: frozen and hashable, so that the decision is made once."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

CONTIGUOUS = "contiguous"
CHANNELS_LAST = "channels last"

_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


class Spec(NamedTuple):
    """What is asked of a backend.

    Attributes:
        device: type of the device, "cpu" or "cuda".
        dtype: of the input and the output.
        shape: ``(N, C, *positions)``.
        layout: of the input in memory, :data:`CONTIGUOUS` or :data:`CHANNELS_LAST`.
        groups: number of groups ``G``.
        activation: applied to the normalised output; None for none.
        needs_grad: a backward pass may follow.
        gpu: its architecture, such as "sm_90"; None for other devices. See :func:`groupnorm.ops.gpu.architecture`.
    """

    device: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    layout: str
    groups: int
    activation: str | None
    needs_grad: bool
    gpu: str | None = None

    @property
    def samples(self) -> int:
        """``N``."""
        return self.shape[0]

    @property
    def channels(self) -> int:
        """``C``."""
        return self.shape[1]

    @property
    def positions(self) -> int:
        """``H * W`` and the like; 1 where there are no spatial axes."""
        return math.prod(self.shape[2:])

    @property
    def elements(self) -> int:
        """All elements of the input."""
        return math.prod(self.shape)

    @property
    def accumulates(self) -> torch.dtype:
        """The dtype of sums and statistics: float32 for the half precisions, else that of the input."""
        return accumulation_dtype(self.dtype)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Float32 for the half precisions, which neither hold squares nor sums; others as they are."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def layout_of(x: Tensor) -> str:
    """The layout that a call computes in: channels-last where the channels of a sample are neighbours in memory.

    One sample decides, never the stride between samples: a sample alone is computed as it is in a batch.
    """
    if x.is_contiguous():
        return CONTIGUOUS
    memory_format = _FORMATS.get(x.dim())
    if memory_format is None:
        return CONTIGUOUS
    if x.is_contiguous(memory_format=memory_format) or _is_channels_last(x):
        return CHANNELS_LAST
    return CONTIGUOUS


def _is_channels_last(x: Tensor) -> bool:
    """Whether the axes of one sample lie in memory as channels-last has them, with or without gaps."""
    sizes, strides = x.shape, x.stride()
    if sizes[1] == 1:
        return False
    innermost_first = (1, *range(x.dim() - 1, 1, -1))
    least, axes = 1, 0
    for axis in innermost_first:
        if sizes[axis] == 1:
            continue
        if strides[axis] < least:
            return False
        least = strides[axis] * sizes[axis]
        axes += 1
    return axes > 1  # channels alone have no order


def arranged(x: Tensor, layout: str) -> Tensor:
    """``x``, dense in this layout; itself where it is."""
    return x.contiguous(memory_format=_memory_format(x, layout))


def is_arranged(x: Tensor, layout: str) -> bool:
    """Whether ``x`` is dense in this layout."""
    return x.is_contiguous(memory_format=_memory_format(x, layout))


def _memory_format(x: Tensor, layout: str) -> torch.memory_format:
    return torch.contiguous_format if layout == CONTIGUOUS else _FORMATS[x.dim()]
