"""What happens to a training image before the network sees it: nothing, or the augmentation of the paper.

Every image takes a row of uniform random numbers from the generator of the epoch, and everything else follows from
these numbers: the same seed shows every norm the same crops, whatever the number of threads that read the images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import permutations, tee

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from groupnorm.errors import ArgumentError, UnknownNameError
from groupnorm.import_path import resolve
from groupnorm.lab.data import Images
from groupnorm.lab.data.files import Box, Crop

_PADDING = 4
_ATTEMPTS = 10
_JITTER = 0.4
_LIGHTING = 0.1
_ORDERS = torch.tensor(list(permutations(range(3))))
_EIGENVALUES = torch.tensor([0.2175, 0.0188, 0.0045], dtype=torch.float64)
_EIGENVECTORS = torch.tensor(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]], dtype=torch.float64
)
"""One row each for red, green and blue, of the covariance of ImageNet's colours in the range 0..1."""


@dataclass(frozen=True)
class Augmentation:
    """A row of :data:`AUGMENTATIONS`.

    Attributes:
        name: as it is written in a cell.
        numbers: uniform random numbers that an image takes.
        alter: from images ``[b, C, H, W]``, on any device, and numbers ``[b, numbers]``, float64 in 0..1, to what
            the network sees of them, before it is standardised.
        box: from the numbers of an image, its height and its width to the part of it that is resized to the size wanted
            before ``alter``; None for the whole image, or the validation view of images on disk.
        colours: whether it needs RGB images in uint8.
    """

    name: str
    numbers: int
    alter: Callable[[Tensor, Tensor], Tensor]
    box: Callable[[Sequence[float], int, int], Box] | None = None
    colours: bool = False

    def check(self, images: Images) -> None:
        """Raise :class:`ArgumentError` for ``images`` that this augmentation does not fit."""
        if self.colours and (images.dtype != torch.uint8 or images.shape[1] != 3):
            raise ArgumentError(
                f"augment={self.name!r} changes colours, and the images are {images.dtype} with {images.shape[1]} "
                f"channels; expected torch.uint8 with 3: use augment='cifar' or 'none'"
            )

    def apply(self, images: Tensor, generator: Generator) -> Tensor:
        """Augment images in memory.

        Args:
            images: ``[b, C, H, W]``, uint8 or float32, in stored units; on the CPU.
            generator: every image takes its numbers from it.

        Returns:
            ``[b, C, H, W]``; of the same dtype, but float32 and not cut off at 0 and 255 when colours change.

        Raises:
            ArgumentError: the images do not fit; see :meth:`check`.
        """
        return next(self.batches(images, [torch.arange(len(images))], generator))

    def batches(
        self,
        images: Images,
        order: Sequence[Tensor],
        generator: Generator,
        device: torch.device | str = "cpu",
        share: slice = slice(None),
    ) -> Iterator[Tensor]:
        """Augmented batches of images in memory or on disk; those on disk are read ahead.

        Args:
            images: all of them, ``[n, C, H, W]``, uint8 or float32, in stored units; on the CPU.
            order: indices ``[b]`` of each batch.
            generator: on the CPU; every image takes its numbers from it.
            device: where the result lies and, but for the cutting, where it is computed.
            share: the part of each batch that is wanted; the others take their numbers all the same.

        Yields:
            As :meth:`apply` returns.

        Raises:
            ArgumentError: the images do not fit; see :meth:`check`.
            DataError: a file on disk is damaged.
        """
        self.check(images)
        drawn = (torch.rand(len(part), self.numbers, generator=generator, dtype=torch.float64) for part in order)
        numbers = (rows[share] for rows in drawn)
        order = [part[share] for part in order]
        ahead, now = tee(numbers)
        found: Iterator[Tensor]
        if isinstance(images, Tensor):
            found = (self._cut(images[part], row) for part, row in zip(order, ahead, strict=True))
        else:
            found = images.batches((part, self._crops(row)) for part, row in zip(order, ahead, strict=True))
        for pixels, row in zip(found, now, strict=True):
            yield self.alter(pixels.to(device), row)

    def _crops(self, numbers: Tensor) -> list[Crop] | None:
        """What each image on disk is to be cropped to."""
        return None if self.box is None else [partial(self.box, row) for row in numbers.tolist()]

    def _cut(self, images: Tensor, numbers: Tensor) -> Tensor:
        """``images``, each replaced by its box at the same size (bilinear, antialiased)."""
        crops = self._crops(numbers)
        if crops is None:
            return images
        height, width = images.shape[-2:]
        parts = []
        for image, crop in zip(images.split(1), crops, strict=True):
            left, top, right, bottom = crop(height, width)
            part = image[..., top:bottom, left:right]
            parts.append(F.interpolate(part, (height, width), mode="bilinear", antialias=True))
        return torch.cat(parts)


def augmentation(name: str) -> Augmentation:
    """The augmentation of that name, or what ``package.module:function`` of the user's own returns.

    Raises:
        UnknownNameError: there is none; lists those there are.
        ArgumentError: the function cannot be imported, or returns something else.
    """
    if name in AUGMENTATIONS:
        return AUGMENTATIONS[name]
    if ":" not in name:
        raise UnknownNameError("augment", name, [*AUGMENTATIONS, "package.module:function"])
    found = resolve(name, "augmentation")()
    if not isinstance(found, Augmentation):
        raise ArgumentError(f"augment {name!r} returned {type(found).__name__}; expected an Augmentation")
    return found


def random_area(numbers: Sequence[float], height: int, width: int) -> Box:
    """A part of 8% to 100% of the area, with an aspect ratio of 3/4 to 4/3, anywhere in the image.

    After ten attempts that do not fit into the image, the largest square in its centre. The logarithm of the
    ratio is uniform. fb.resnet.torch means the same, but applies the ratio to both sides, so that its own crops go
    from 9/16 to 16/9. Source: Szegedy et al. 2015, section 6; fb.resnet.torch, datasets/transforms.lua.

    Args:
        numbers: area and aspect ratio of each attempt, then the vertical and the horizontal position, in 0..1.
        height: of the image.
        width: of the image.
    """
    for attempt in range(_ATTEMPTS):
        area = (0.08 + 0.92 * numbers[2 * attempt]) * height * width
        ratio = (4 / 3) ** (2 * numbers[2 * attempt + 1] - 1)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            down, right = numbers[2 * _ATTEMPTS : 2 * _ATTEMPTS + 2]
            top, left = int(down * (height - h + 1)), int(right * (width - w + 1))
            return left, top, left + w, top + h
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return left, top, left + side, top + side


def pad_crop_flip(images: Tensor, numbers: Tensor) -> Tensor:
    """Pad with four pixels of zero, crop the old size at random, mirror every other image.

    Zero is black, since images are padded as they are stored. Source: He et al. 2016, arXiv:1512.03385, section 4.2.

    Args:
        images: ``[b, C, H, W]``, of any dtype.
        numbers: ``[b, 3]``: vertical and horizontal position, and whether to mirror.
    """
    b, c, h, w = images.shape
    numbers = numbers.to(images.device)
    top, left = (numbers[:, :2] * (2 * _PADDING + 1)).long().T
    rows = top.view(b, 1, 1, 1) + torch.arange(h, device=images.device).view(h, 1)
    columns = torch.arange(w, device=images.device).expand(b, w)
    columns = torch.where(numbers[:, 2:] < 0.5, columns.flip(1), columns) + left.view(b, 1)
    image = torch.arange(b, device=images.device).view(b, 1, 1, 1)
    channel = torch.arange(c, device=images.device).view(c, 1, 1)
    return F.pad(images, (_PADDING,) * 4)[image, channel, rows, columns.view(b, 1, 1, w)]


def flip_jitter_light(images: Tensor, numbers: Tensor) -> Tensor:
    """Mirror every other image, then jitter its colours and its lighting.

    Brightness, contrast and saturation are each blended, in random order, with a factor of 0.6 to 1.4; then the
    colours are shifted along the principal components of ImageNet's colours (Krizhevsky et al. 2012, section 4.1)
    by 0.1 standard deviations. Nothing is cut off at 0 and 255. Source: fb.resnet.torch, datasets/imagenet.lua.

    Args:
        images: ``[b, 3, H, W]``, in 0..255.
        numbers: ``[b, 30]``: what :func:`random_area` took, then whether to mirror, the order, the three factors
            and, through the normal distribution, the three shifts.

    Returns:
        ``[b, 3, H, W]``, float32.
    """
    own = numbers[:, 2 * _ATTEMPTS + 2 :]
    mirror = own[:, :1] < 0.5
    order = _ORDERS[(own[:, 1] * len(_ORDERS)).long()]
    factors = (1 - _JITTER + 2 * _JITTER * own[:, 2:5]).gather(1, order)  # in the order they are used
    shifts = _LIGHTING * torch.special.ndtri(own[:, 5:8].clamp(min=1e-12))
    light = 255 * (shifts * _EIGENVALUES) @ _EIGENVECTORS.T

    def column(values: Tensor) -> Tensor:
        return values.view(len(images), -1, 1, 1).to(images.device)

    pixels = torch.where(column(mirror), images.flip(-1), images).float()
    for kind, factor in zip(order.T, factors.float().T, strict=True):
        grey = _luminance(pixels)
        blend = torch.where(column(kind == 1), grey.mean((2, 3), keepdim=True), grey)  # contrast, else saturation
        blend = torch.where(column(kind == 0), 0.0, blend)  # brightness
        pixels = torch.lerp(blend, pixels, column(factor))
    return pixels + column(light.float())


def _luminance(pixels: Tensor) -> Tensor:
    return (pixels * pixels.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)


AUGMENTATIONS: dict[str, Augmentation] = {
    row.name: row
    for row in (
        Augmentation("none", 0, lambda images, numbers: images),
        Augmentation("cifar", 3, pad_crop_flip),
        Augmentation("imagenet", 2 * _ATTEMPTS + 10, flip_jitter_light, random_area, colours=True),
    )
}
"""By name: "none"; "cifar", He et al. 2016; "imagenet", fb.resnet.torch, as in Wu & He 2018, section 4.1."""
