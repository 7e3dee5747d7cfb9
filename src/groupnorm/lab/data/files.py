"""Photographs that stay on disk and are decoded, in threads, when a batch is asked for."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from groupnorm.lab.data.errors import DataError, listed
from groupnorm.lab.data.images import failures, read_image

if TYPE_CHECKING:
    from PIL import Image

THREADS = min(32, os.cpu_count() or 1)
"""Threads that decode; Pillow and numpy release the interpreter's lock while they work."""

AHEAD = 2 * THREADS
"""Images that are being read while a batch is used, at least; two batches if these are more."""

Box = tuple[int, int, int, int]
"""Left, upper, right and lower edge of a part of an image, in pixels."""

Crop = Callable[[int, int], Box]
"""From the height and the width of an image to the part that is read, for the training view."""


class ImageFiles:
    """Square RGB images whose files are read when they are asked for.

    It stands where a tensor ``[n, 3, size, size]`` of uint8 would: it has ``len``, ``shape`` and ``dtype``, and
    indices or a slice give a tensor. These give the validation view of Wu & He 2018, section 4.1: the shorter side
    is resized to ``256 / 224 * size`` (bilinear, antialiased) and the centre is cropped. :meth:`batches` reads ahead
    while the batch before is used, and can crop another part.

    Args:
        root: folder that the names start from.
        names: of the files.
        size: side of the images, in pixels.
    """

    dtype = torch.uint8

    def __init__(self, root: Path, names: Sequence[str], size: int = 224) -> None:
        self.root, self.names, self.size = root, names, size

    def __len__(self) -> int:
        return len(self.names)

    @property
    def shape(self) -> torch.Size:
        """``(n, 3, size, size)``."""
        return torch.Size((len(self), 3, self.size, self.size))

    def __getitem__(self, chosen: Tensor | slice) -> Tensor:
        indices = torch.arange(len(self))[chosen] if isinstance(chosen, slice) else chosen
        return next(self.batches([(indices, None)]))

    def split(self, size: int) -> Iterator[Tensor]:
        """The images in order, ``size`` at a time, read ahead."""
        return self.batches((chosen, None) for chosen in torch.arange(len(self)).split(size))

    def resized(self, size: int | None) -> ImageFiles:
        """The same images with sides of ``size`` pixels; None leaves them as they are."""
        return ImageFiles(self.root, self.names, size or self.size)

    def listing(self) -> bytes:
        """Name and size in bytes of every file, one a line: what these images are known by, without reading them."""
        return b"".join(b"%s %d\n" % (os.fsencode(name), self._bytes(name)) for name in self.names)

    def _bytes(self, name: str) -> int:
        try:
            return os.stat(self.root / name).st_size
        except OSError as error:
            raise DataError(
                f"{self.root / name} cannot be read ({error.strerror or error}); replace or remove it"
            ) from error

    def batches(self, wanted: Iterable[tuple[Tensor, Sequence[Crop] | None]]) -> Iterator[Tensor]:
        """Read batch after batch, the next ones already while one is used.

        Args:
            wanted: of each batch the indices ``[b]``, and for each image the part to read; None for the validation
                view.

        Yields:
            ``[b, 3, size, size]``, uint8.

        Raises:
            DataError: files of a batch are not whole images. Names them.
        """
        waiting: deque[tuple[Tensor, list[Future[None]]]] = deque()
        pool = ThreadPoolExecutor(THREADS, "decode")
        try:
            for indices, crops in wanted:
                waiting.append(self._start(pool, indices, crops))
                if len(waiting) > 2 and (len(waiting) - 1) * len(indices) > AHEAD:
                    yield _whole(*waiting.popleft())
            while waiting:
                yield _whole(*waiting.popleft())
        finally:  # also when the rest is not wanted any more
            pool.shutdown(cancel_futures=True)

    def _start(
        self, pool: ThreadPoolExecutor, indices: Tensor, crops: Sequence[Crop] | None
    ) -> tuple[Tensor, list[Future[None]]]:
        batch = np.empty((len(indices), *self.shape[1:]), dtype=np.uint8)

        def fill(place: int, index: int) -> None:
            image = read_image(self.root / self.names[index])
            view = self._centre(image) if crops is None else self._part(image, crops[place])
            batch[place] = np.asarray(view).transpose(2, 0, 1)

        return torch.from_numpy(batch), [pool.submit(fill, *item) for item in enumerate(indices.tolist())]

    def _centre(self, image: Image.Image) -> Image.Image:
        from PIL.Image import Resampling

        shorter = round(self.size * 256 / 224)
        width, height = (side * shorter // min(image.size) for side in image.size)
        left, top = round((width - self.size) / 2), round((height - self.size) / 2)
        resized = image.resize((width, height), Resampling.BILINEAR)
        return resized.crop((left, top, left + self.size, top + self.size))

    def _part(self, image: Image.Image, crop: Crop) -> Image.Image:
        from PIL.Image import Resampling

        return image.crop(crop(image.height, image.width)).resize((self.size, self.size), Resampling.BILINEAR)


def _whole(batch: Tensor, reading: list[Future[None]]) -> Tensor:
    if problems := failures(reading):
        raise listed(problems)
    return batch
