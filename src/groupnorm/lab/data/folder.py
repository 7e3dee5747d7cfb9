"""A folder of the user's: ``train/CLASS/*.jpg`` and ``val/CLASS/*.jpg``."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from groupnorm.lab.data.errors import DataError
from groupnorm.lab.data.images import decode, pixels, to_square
from groupnorm.lab.data.listing import LabelledFile, list_splits
from groupnorm.lab.data.source import Source, Split


def open_folder(root: Path, image_size: int | None) -> Source:
    """Find the images of a folder; each becomes ``[3, H, W]`` when it is read.

    Args:
        root: holds ``train`` and either ``val`` or ``test``.
        image_size: shorter side after resizing, and side of the crop; None when all images have one size.

    Raises:
        DataError: a folder is missing or empty, or validation has a class that training has not.
    """
    classes, train, val = list_splits(root)
    return Source(_split(root, train, image_size), _split(root, val, image_size), classes)


def _split(root: Path, files: list[LabelledFile], image_size: int | None) -> Split:
    def one(index: int) -> Tensor:
        path = root / files[index][0]
        return to_square(pixels(decode(path.read_bytes(), str(path))).unsqueeze(0), image_size)[0]

    def read(indices: Tensor) -> Tensor:
        chosen = indices.tolist()
        images = torch.empty((len(chosen), *one(chosen[0]).shape), dtype=torch.uint8)

        def fill(image: Tensor, index: int) -> None:
            found = one(index)
            if found.shape != image.shape:
                raise DataError(
                    f"{root / files[index][0]} has shape {tuple(found.shape)}, {root / files[chosen[0]][0]} has "
                    f"{tuple(image.shape)}; expected one size: set image_size"
                )
            image.copy_(found)

        with ThreadPoolExecutor() as pool:
            list(pool.map(fill, images, chosen))  # raises the first error, and then does no more
        return images

    return Split(torch.tensor([label for _, label in files]), read)
