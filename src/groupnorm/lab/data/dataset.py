"""What every dataset is once loaded: images, labels, the statistics that standardise them, and a fingerprint."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from groupnorm.lab.data.files import ImageFiles

Images = Tensor | ImageFiles
"""Images in memory, or on disk."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images, and how to standardise them.

    Attributes:
        name: the name it was loaded by.
        train_images: ``[n, C, H, W]``, uint8 or float32, in the units they are stored in; a tensor, or
            :class:`ImageFiles` that are read when asked for.
        train_labels: ``[n]``, int64, in ``0 .. num_classes - 1``.
        val_images: ``[m, C, H, W]``, of the same dtype and image shape.
        val_labels: ``[m]``, int64.
        num_classes: number of classes of the whole set; a limited one may hold fewer.
        mean: ``[C, 1, 1]``, float32, over the training images here, in stored units; as published for images on disk.
        std: the population standard deviation of the same; 1 for a channel that is constant.
        digest: 16 hexadecimal digits that change with any value, shape or dtype of images and labels; for images
            on disk, with the name or the size of any file.
        note: a caveat to show beside results; "" if none.
        classes: the name of each class.
    """

    name: str
    train_images: Images
    train_labels: Tensor
    val_images: Images
    val_labels: Tensor
    num_classes: int
    mean: Tensor
    std: Tensor
    digest: str
    note: str
    classes: tuple[str, ...] = ()

    @property
    def outputs(self) -> int:
        """Number of logits."""
        return self.num_classes

    @property
    def train_inputs(self) -> Images:
        """The training images."""
        return self.train_images

    @property
    def train_targets(self) -> Tensor:
        """The training labels."""
        return self.train_labels

    @property
    def val_inputs(self) -> Images:
        """The validation images."""
        return self.val_images

    @property
    def val_targets(self) -> Tensor:
        """The validation labels."""
        return self.val_labels

    def batch(self, images: Tensor) -> Tensor:
        """``(images - mean) / std`` in float32, on the device of ``images`` ``[b, C, H, W]``."""
        return (images.float() - self.mean.to(images.device)) / self.std.to(images.device)


def channel_stats(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population standard deviation of each channel of ``images`` ``[n, C, H, W]``.

    Computed in float64, for uint8 from a histogram, so that the sums are exact whatever the number of threads.

    Returns:
        ``(mean, std)``, each ``[C, 1, 1]``, float32. A std no larger than the rounding of the mean becomes 1.
    """
    stats = [_histogram_stats(c) if c.dtype == torch.uint8 else _two_pass_stats(c) for c in images.unbind(1)]
    mean, std = torch.tensor(stats, dtype=torch.float64).T
    kind = torch.finfo(torch.float32)
    std = torch.where(std > (kind.eps * mean.abs()).clamp(min=kind.tiny), std, 1.0)
    return mean.float().view(-1, 1, 1), std.float().view(-1, 1, 1)


def _histogram_stats(values: Tensor) -> tuple[float, float]:
    weights = torch.bincount(values.reshape(-1), minlength=256).double() / values.numel()
    levels = torch.arange(256, dtype=torch.float64)
    mean = weights @ levels
    return float(mean), float((weights @ (levels - mean) ** 2).sqrt())


def _two_pass_stats(values: Tensor) -> tuple[float, float]:
    mean = values.mean(dtype=torch.float64)
    squares = sum(float(((part.double() - mean) ** 2).sum()) for part in values.split(1024))
    return float(mean), (squares / values.numel()) ** 0.5


def digest(*parts: Images) -> str:
    """The first 16 hexadecimal digits of sha256 over the dtypes, shapes and bytes of tensors, in order.

    Of images on disk, it takes the names and the sizes of the files, since reading all of ImageNet takes hours.
    """
    sha = hashlib.sha256()
    for part in parts:
        sha.update(f"{part.dtype} {tuple(part.shape)};".encode())
        sha.update(part.contiguous().numpy().data if isinstance(part, Tensor) else part.listing())
    return sha.hexdigest()[:16]
