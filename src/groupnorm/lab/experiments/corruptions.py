"""Contrast, noise and blur at five severities, as ImageNet-C and CIFAR-10-C have them.

Hendrycks & Dietterich 2019, arXiv:1903.12261.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from groupnorm.errors import UnknownNameError


@dataclass(frozen=True)
class Severities:
    """The constants of each corruption at severity 1 to 5.

    Attributes:
        contrast: what is left of the distance to the mean.
        noise: standard deviation; white is 1.
        blur: radius in pixels of the disk, and standard deviation of the Gaussian that softens its edge.
    """

    contrast: tuple[float, ...]
    noise: tuple[float, ...]
    blur: tuple[tuple[float, float], ...]


SEVERITIES: dict[str, Severities] = {
    "imagenet-c": Severities(
        (0.4, 0.3, 0.2, 0.1, 0.05),
        (0.08, 0.12, 0.18, 0.26, 0.38),
        ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    ),
    "cifar10-c": Severities(
        (0.75, 0.5, 0.4, 0.3, 0.15),
        (0.04, 0.06, 0.08, 0.09, 0.1),
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    ),
}
"""For images of 224 and of 32 pixels, from the authors' make_imagenet_c.py and make_cifar_c.py."""

CORRUPTIONS = ("contrast", "noise", "blur")


def corrupt(images: Tensor, name: str, severity: int, kind: str, generator: Generator) -> Tensor:
    """Images after a corruption, clipped to black and white, but not rounded to bytes nor compressed as JPEG.

    Args:
        images: ``[b, C, H, W]``, float, 0 is black and 1 white.
        name: one of :data:`CORRUPTIONS`: towards the mean of each channel of each image; Gaussian noise; defocus blur.
        severity: 1 to 5.
        kind: key of :data:`SEVERITIES`.
        generator: of the noise, on the CPU, so that every device sees the same.

    Raises:
        UnknownNameError: there is no such corruption or kind.
    """
    if kind not in SEVERITIES:
        raise UnknownNameError("kind of corruption", kind, SEVERITIES)
    constants = SEVERITIES[kind]
    corruptions: dict[str, Callable[[], Tensor]] = {
        "contrast": lambda: reduce_contrast(images, constants.contrast[severity - 1]),
        "noise": lambda: add_noise(images, constants.noise[severity - 1], generator),
        "blur": lambda: defocus(images, *constants.blur[severity - 1]),
    }
    if name not in corruptions:
        raise UnknownNameError("corruption", name, corruptions)
    return corruptions[name]().clamp(0, 1)


def reduce_contrast(images: Tensor, left: float) -> Tensor:
    """Each channel of each image moved towards its mean; ``left`` of the distance remains."""
    mean = images.mean((2, 3), keepdim=True)
    return (images - mean) * left + mean


def add_noise(images: Tensor, std: float, generator: Generator) -> Tensor:
    """Independent Gaussian noise in every value."""
    return images + std * torch.randn(images.shape, generator=generator).to(images)


def defocus(images: Tensor, radius: float, softness: float) -> Tensor:
    """Each channel convolved with :func:`disk`; the image is mirrored at its border."""
    kernel = disk(radius, softness).to(images)
    reach = len(kernel) // 2
    channels = images.shape[1]
    padded = F.pad(images, (reach,) * 4, mode="reflect")
    return F.conv2d(padded, kernel.expand(channels, 1, -1, -1), groups=channels)


def disk(radius: float, softness: float) -> Tensor:
    """A disk of sum 1 softened by a Gaussian of 3 taps, 5 if the radius is above 8; ``[k, k]``, float64.

    A disk that touches the border of its array is mirrored there, as in the authors' code, and sums up to 1% above 1.
    """
    taps, reach = (3, 8) if radius <= 8 else (5, int(radius))
    line = torch.arange(-reach, reach + 1, dtype=torch.float64)
    sharp = (line[:, None] ** 2 + line**2 <= radius**2).double()
    sharp /= sharp.sum()
    offsets = torch.arange(taps, dtype=torch.float64) - taps // 2
    gaussian = torch.exp(-(offsets**2) / (2 * softness**2))
    gaussian /= gaussian.sum()
    padded = F.pad(sharp[None, None], (taps // 2,) * 4, mode="reflect")
    soft = F.conv2d(padded, (gaussian[:, None] * gaussian)[None, None])[0, 0]
    beyond = max(reach - int(radius) - taps // 2, 0)  # zeros around it, which would ask for more mirroring
    return soft[beyond : len(soft) - beyond, beyond : len(soft) - beyond]
