"""Decode image files, and bring images in memory to one square size."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from groupnorm.lab.data.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

MAX_BYTES = 4 * 2**30
"""The most that the images of one dataset may take in memory."""


def decode(data: bytes, where: str) -> Image.Image:
    """The picture in a JPEG, PNG or WebP file, as RGB.

    Args:
        data: the file's bytes.
        where: the file's name, for the error.

    Raises:
        DataError: the bytes are not a whole image.
    """
    from PIL import Image

    try:
        with Image.open(BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as file:
            if file.mode.startswith("I"):  # 16 bits of grey; Pillow's own conversion would cut them off at 255
                return Image.fromarray((np.array(file) // 257).astype(np.uint8)).convert("RGB")
            return file.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{where} is not a whole JPEG, PNG or WebP image ({error}); replace or remove it") from error


def pixels(image: Image.Image) -> Tensor:
    """``[3, H, W]``, uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def to_square(images: Tensor, size: int | None) -> Tensor:
    """Resize the shorter side to ``size`` (bilinear, antialiased) and crop the centre; square images lose nothing.

    Args:
        images: ``[n, C, H, W]``, uint8 or float32.
        size: side in pixels; None returns ``images`` as they are.

    Returns:
        ``[n, C, size, size]`` of the same dtype; uint8 is rounded.
    """
    height, width = images.shape[-2:]
    if size is None or height == width == size:
        return images
    scale = size / min(height, width)
    height, width = round(height * scale), round(width * scale)
    images = F.interpolate(images, (height, width), mode="bilinear", antialias=True)
    top, left = (height - size) // 2, (width - size) // 2
    return images[..., top : top + size, left : left + size].contiguous()


def check_memory(name: str, image: Tensor, count: int) -> None:
    """Raise :class:`DataError` when ``count`` images like ``image`` ``[1, C, H, W]`` exceed ``MAX_BYTES``."""
    needed = image.nbytes * count
    if needed > MAX_BYTES:
        raise DataError(
            f"dataset {name!r}: {count:,} images of shape {tuple(image.shape[1:])} need {needed:,} bytes of memory; "
            f"expected at most {MAX_BYTES:,}: use a smaller image_size, or limit_train and limit_val with at most "
            f"{MAX_BYTES // image.nbytes:,} images together"
        )
