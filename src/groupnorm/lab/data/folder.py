"""A folder of the user's: ``train/CLASS/*.jpg`` and ``val/CLASS/*.jpg``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from groupnorm.lab.data.errors import DataError, listed
from groupnorm.lab.data.image_index import LabelledFile, list_splits
from groupnorm.lab.data.images import failures, pixels, read_image, to_square
from groupnorm.lab.data.source import Source, Split


def open_folder(root: Path, image_size: int | None) -> Source:
    """Find the images of a folder; each becomes ``[3, H, W]`` when it is read.

    Args:
        root: holds ``train`` and either ``val`` or ``test``; see :func:`groupnorm.lab.data.image_index.list_splits`.
        image_size: shorter side after resizing, and side of the crop; None when all images have one size.

    Raises:
        DataError: a folder is missing or empty, there is one class only, or validation has a class that training has
            not.
    """
    classes, train, val, note = list_splits(root)
    return Source(_split(root, train, image_size), _split(root, val, image_size), classes, note)


def _split(root: Path, files: list[LabelledFile], image_size: int | None) -> Split:
    def one(index: int) -> Tensor:
        return to_square(pixels(read_image(root / files[index][0])).unsqueeze(0), image_size)[0]

    def read(indices: Tensor) -> Tensor:
        chosen = indices.tolist()
        like, shape = _first(one, chosen)
        images = torch.empty((len(chosen), *shape), dtype=torch.uint8)
        other: dict[int, torch.Size] = {}

        def fill(image: Tensor, index: int) -> None:
            found = one(index)
            if found.shape == image.shape:
                image.copy_(found)
            else:
                other[index] = found.shape

        with ThreadPoolExecutor() as pool:
            problems = failures([pool.submit(fill, *item) for item in zip(images, chosen, strict=True)])
        if other:
            index, size = min(other.items())
            problems.insert(
                0,
                f"{root / files[index][0]} has shape {tuple(size)}, {root / files[like][0]} has {tuple(shape)}, and "
                f"{len(other):,} of {len(chosen):,} images differ from it; expected one size: set image_size "
                f"(--image-size)",
            )
        if problems:
            raise listed(problems)
        return images

    return Split(torch.tensor([label for _, label in files]), read)


def _first(one: Callable[[int], Tensor], chosen: Sequence[int]) -> tuple[int, torch.Size]:
    """The first image that can be read, and its shape; where none can, that of no image."""
    for index in chosen:
        with suppress(DataError):
            return index, one(index).shape
    return -1, torch.Size((3, 0, 0))
