"""Decode image files, and bring images in memory to one square size."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from groupnorm.lab.data.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
"""Names that Pillow has for what is read, whatever the end of a file's name: there are GIFs that end in .jpg."""

MAX_BYTES = 4 * 2**30
"""The most that the images of one dataset may take in memory."""


def read_image(path: Path) -> Image.Image:
    """The picture in an image file, as :func:`decode` gives it.

    Raises:
        DataError: the file cannot be read, or is no image.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}); replace or remove it") from error
    return decode(data, str(path))


def decode(data: bytes, where: str) -> Image.Image:
    """The picture in a file of one of the ``FORMATS``, as RGB; the first where there are several.

    Args:
        data: the file's bytes.
        where: the file's name, for the error.

    Raises:
        DataError: the bytes are not a whole image, or one with too many pixels or bits.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(BytesIO(data), formats=FORMATS) as file:
            if file.mode.startswith("I"):  # 16 bits of grey; Pillow's own conversion would cut them off at 255
                return Image.fromarray((_sixteen_bits(np.array(file)) // 257).astype(np.uint8)).convert("RGB")
            if file.mode == "F":
                raise ValueError("it holds floating-point numbers, where 8 or 16 bits are expected")
            return file.convert("RGB")
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{where} has more pixels than the {2 * (Image.MAX_IMAGE_PIXELS or 0):,} that Pillow reads; make it "
            f"smaller, or remove it"
        ) from error
    except Exception as error:  # a damaged file may raise anything
        reason = str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = f"its content is none of {', '.join(FORMATS)}"
        raise DataError(f"{where} is not a whole image ({reason}); replace or remove it") from error


def failures(reading: Sequence[Future[None]]) -> list[str]:
    """Wait until all images are read; what is wrong with those that could not be."""
    errors = [error for future in reading if (error := future.exception())]
    for error in errors:
        if not isinstance(error, DataError):
            raise error
    return [str(error) for error in errors]


def _sixteen_bits(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"its values are {values.min()} to {values.max()}, where 0 to 65535 are expected")
    return values


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
            f"expected at most {MAX_BYTES:,}: use a smaller image_size (--image-size), or limit_train and limit_val "
            f"(--limit-train, --limit-val) with at most {MAX_BYTES // image.nbytes:,} images together"
        )
