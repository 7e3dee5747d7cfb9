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
    """

    device: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    layout: str
    groups: int
    activation: str | None
    needs_grad: bool

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


def layout_of(x: Tensor) -> str | None:
    """The layout of an input in memory; None where it is neither of the two."""
    if x.is_contiguous():
        return CONTIGUOUS
    memory_format = _FORMATS.get(x.dim())
    if memory_format is not None and x.is_contiguous(memory_format=memory_format):
        return CHANNELS_LAST
    return None


def arranged(x: Tensor, layout: str) -> Tensor:
    """``x`` in this layout; itself where it has it."""
    if layout == CONTIGUOUS:
        return x.contiguous()
    return x.contiguous(memory_format=_FORMATS[x.dim()])
