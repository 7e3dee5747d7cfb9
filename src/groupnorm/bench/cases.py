"""What is timed: shapes that users have, in their dtypes, layouts and activations, as data."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from groupnorm.errors import ArgumentError, DivisibilityError, UnknownNameError
from groupnorm.ops.activation import ACTIVATIONS as FUNCTIONS

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LAYOUTS = ("contiguous", "channels-last")
ACTIVATIONS = ("none", *FUNCTIONS)

ALL = "all"
GRID_DTYPES = ("fp32", "bf16")
GRID_ACTIVATIONS = ("none", "relu", "silu")
"""What the targets are about, with all layouts and the listed shapes."""

_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
_CUSTOM = re.compile(r"(\d+(?:x\d+)+):(\d+)")


class Shape(NamedTuple):
    """A shape of the input.

    Attributes:
        size: ``(N, C, *positions)``.
        groups: number of groups ``G``.
        family: by which it is chosen on the command line.
        where: who has it.
    """

    size: tuple[int, ...]
    groups: int
    family: str = "own"
    where: str = "of the command line"

    @property
    def elements(self) -> int:
        """Of the input."""
        return math.prod(self.size)

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.size))}:{self.groups}"


SHAPES = (
    Shape((2, 320, 64, 64), 32, "unet", "diffusion UNet"),
    Shape((2, 640, 32, 32), 32, "unet", "diffusion UNet"),
    Shape((2, 1920, 16, 16), 32, "unet", "diffusion UNet"),
    Shape((2, 2560, 8, 8), 32, "unet", "diffusion UNet"),
    Shape((1, 256, 512, 512), 32, "vae", "image VAE"),
    Shape((1, 128, 1024, 1024), 32, "vae", "image VAE"),
    Shape((1, 128, 20, 256, 256), 32, "video", "video VAE"),
    Shape((1, 512, 16, 180, 320), 32, "video", "video VAE"),
    Shape((32, 256, 56, 56), 32, "resnet", "ResNet-50"),
    Shape((2, 2048, 7, 7), 32, "resnet", "ResNet-50"),
    Shape((2, 256, 200, 336), 32, "rcnn", "Mask R-CNN FPN P2"),
    Shape((4, 64, 64, 64, 64), 8, "medical", "3D medical"),
    Shape((1, 32, 256, 256, 72), 4, "medical", "3D medical"),
    Shape((1024, 512), 8, "flat", "no spatial axis"),
)
HUGE = Shape((1, 128, 16128, 1200), 16, "huge", "more than 2^31 elements")
"""Bf16 and forward only; asked for by ``--huge``."""


class Case(NamedTuple):
    """One shape in one dtype, layout and activation, by their names on the command line."""

    shape: Shape
    dtype: str
    layout: str
    activation: str

    @property
    def key(self) -> str:
        """Its name in the results, such as ``2x320x64x64:32 bf16 channels-last silu``."""
        return f"{self.shape} {self.kind}"

    @property
    def kind(self) -> str:
        """All but the shape, such as ``bf16 channels-last silu``."""
        return f"{self.dtype} {self.layout} {self.activation}"

    @property
    def function(self) -> str | None:
        """The activation as the package names it."""
        return None if self.activation == "none" else self.activation

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of the input, scale and shift."""
        return DTYPES[self.dtype]

    @property
    def memory_format(self) -> torch.memory_format:
        """The layout as PyTorch names it."""
        return torch.contiguous_format if self.layout == "contiguous" else _FORMATS[len(self.shape.size)]

    @property
    def nbytes(self) -> int:
        """Bytes of the input."""
        return self.shape.elements * self.torch_dtype.itemsize

    @property
    def group_bytes(self) -> int:
        """Bytes of one group of one sample."""
        return self.nbytes // (self.shape.size[0] * self.shape.groups)

    @property
    def trains(self) -> bool:
        """Whether the backward pass is timed."""
        return self.shape != HUGE


def grid(shapes: Sequence[Shape], dtypes: Sequence[str], layouts: Sequence[str], acts: Sequence[str]) -> list[Case]:
    """All combinations that exist: an input without two or three spatial axes has one layout, and the huge one is bf16.

    Args:
        shapes: as of :func:`find_shapes`.
        dtypes: of :data:`DTYPES`.
        layouts: of :data:`LAYOUTS`.
        acts: activations of :data:`ACTIVATIONS`.
    """
    return [
        Case(shape, dtype, layout, activation)
        for shape in dict.fromkeys(shapes)
        for dtype in (dtypes if shape != HUGE else ["bf16"])
        for layout in layouts
        if layout == "contiguous" or len(shape.size) in _FORMATS
        for activation in acts
    ]


def listed() -> list[Case]:
    """The cases that the targets are about."""
    return grid(SHAPES, GRID_DTYPES, LAYOUTS, GRID_ACTIVATIONS)


def find_shapes(names: str) -> list[Shape]:
    """Shapes of comma-separated families, listed shapes or shapes such as 2x8x16x16:4; "all" is all that are listed.

    Raises:
        UnknownNameError: neither a family nor a shape.
        DivisibilityError: the channels of a shape do not split into its groups.
    """
    if names == ALL:
        return list(SHAPES)
    return [shape for name in names.split(",") for shape in _shapes(name.strip())]


def names_of(kind: str, given: str, known: Sequence[str]) -> list[str]:
    """Comma-separated names of a kind, each of which has to be known."""
    found = [name.strip() for name in given.split(",")]
    for name in found:
        if name not in known:
            raise UnknownNameError(kind, name, known)
    return found


def _shapes(name: str) -> Iterator[Shape]:
    every = (*SHAPES, HUGE)
    if matching := [shape for shape in every if name in (shape.family, str(shape))]:
        yield from matching
        return
    if not (custom := _CUSTOM.fullmatch(name)):
        raise UnknownNameError("shape", name, [*dict.fromkeys(shape.family for shape in every), "NxCxHxW:G"])
    size, groups = tuple(map(int, custom[1].split("x"))), int(custom[2])
    if 0 in (*size, groups):
        raise ArgumentError(f"shape {name!r} has a 0; expected sizes and groups of at least 1, such as 2x8x16x16:4")
    if size[1] % groups:
        raise DivisibilityError(size[1], groups)
    yield Shape(size, groups)
