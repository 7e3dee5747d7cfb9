"""Images from a function of the user's own, ``package.module:function``, checked."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from groupnorm.import_path import resolve
from groupnorm.lab.data.errors import DataError
from groupnorm.lab.data.source import Source, Split

LARGEST = 1e37
"""Differences of smaller numbers are finite in float32."""


def open_function(reference: str) -> Source:
    """Call a function without arguments that returns ``(train_images, train_labels, val_images, val_labels)``.

    Each is a tensor or a numpy array: images ``[n, C, H, W]``, uint8 or float32, and integer labels ``[n]`` in
    ``0 .. K - 1``, each of which occurs in training. An exception that the function raises is not touched.

    Args:
        reference: ``package.module:function``, importable from the current folder or PYTHONPATH.

    Raises:
        ArgumentError: there is no such function.
        DataError: what it returns is not of this form. Says which of the four and why.
    """
    function = resolve(reference, "dataset")
    returned = function()
    if not isinstance(returned, (tuple, list)) or len(returned) != 4:
        what = f"{len(returned)} values" if isinstance(returned, (tuple, list)) else f"a {type(returned).__name__}"
        raise DataError(f"{reference} returned {what}; expected (train_images, train_labels, val_images, val_labels)")
    train = _split(reference, "train", *returned[:2])
    val = _split(reference, "val", *returned[2:])
    count = len(train.labels.unique())
    if count == 1:
        raise DataError(
            f"{reference}: train_labels holds {int(train.labels[0])} only, so every answer is right; expected two "
            f"classes or more: check how the labels are made"
        )
    if int(train.labels.max()) != count - 1 or int(val.labels.max()) >= count:
        raise DataError(
            f"{reference}: train_labels has {count} different values up to {int(train.labels.max())}, val_labels goes "
            f"up to {int(val.labels.max())}; expected every label of 0 to K-1 in training and no other: renumber them"
        )
    notes = []
    if lacking := count - len(val.labels.unique()):
        notes.append(f"val_labels lacks {lacking} of the {count} classes")
    channels, height, width = train.read(torch.tensor([0])).shape[1:]
    if 4 < channels == height != width:  # may be square images whose channels are last, and may be not
        notes.append(f"train_images was taken for {channels} channels of {height}x{width}")
    return Source(train, val, tuple(map(str, range(count))), "; ".join(notes))


def _split(reference: str, name: str, images: Any, labels: Any) -> Split:
    images = _tensor(f"{reference}: {name}_images", images)
    labels = _tensor(f"{reference}: {name}_labels", labels)
    got = f"{reference}: {name}_images has shape {tuple(images.shape)} and dtype {images.dtype}"
    if images.dim() != 4 or not images.numel():
        remedy = "add the channel axis with images[:, None]" if images.dim() == 3 else "reshape them"
        raise DataError(f"{got}; expected (n, C, H, W), not empty: {remedy}")
    if _channels_look_last(*images.shape[1:]):
        raise DataError(
            f"{got}, which looks like (n, H, W, C); expected (n, C, H, W): permute the axes (0, 3, 1, 2). If axis 1 "
            f"does hold {images.shape[1]} channels, exchange height and width instead, (0, 1, 3, 2)"
        )
    if images.dtype not in (torch.uint8, torch.float32):
        raise DataError(f"{got}; expected uint8 or float32: convert them")
    if images.is_floating_point() and not bool((images.abs() < LARGEST).all()):
        raise DataError(
            f"{got} and holds NaN, infinity or values beyond {LARGEST:g}; expected finite values: replace or drop "
            f"those images"
        )
    if name == "train" and images.min() == images.max():
        raise DataError(
            f"{got} and holds {images.max():g} only; expected different ones: values of 0 to 1 all become 0 as uint8, "
            f"so multiply by 255 before, or keep float32"
        )
    got = f"{reference}: {name}_labels has shape {tuple(labels.shape)} and dtype {labels.dtype}"
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise DataError(f"{got}; expected class numbers of an integer dtype: convert them")
    if labels.shape != images.shape[:1]:
        remedy = "drop an axis with labels[:, 0], turn one-hot rows into numbers with labels.argmax(1)"
        remedy = remedy if labels.dim() == 2 else f"{name}_images has {len(images)} of them on its first axis"
        raise DataError(f"{got}; expected ({len(images)},), one label for each image: {remedy}")
    labels = labels.long()
    if int(labels.min()) < 0:
        raise DataError(f"{got} and goes down to {int(labels.min())}; expected 0 to K-1: renumber them")
    return Split.in_memory(images, labels)


def _channels_look_last(first: int, second: int, last: int) -> bool:
    """Whether the axes after the first are height, width and channels: an image is hardly four pixels wide."""
    return last <= 4 < min(first, second)


def _tensor(what: str, value: Any) -> Tensor:
    if isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta and not value.is_nested:
        return value.detach().cpu()
    if isinstance(value, np.ndarray) and not isinstance(value, np.ma.MaskedArray) and value.dtype.kind in "biufc":
        native = value.astype(value.dtype.newbyteorder("="), copy=False)  # idx and FITS files are big-endian
        with suppress(TypeError):  # long double
            return torch.from_numpy(np.require(native, requirements=["C", "W"]))
    kind = type(value).__name__
    if isinstance(value, np.ndarray):
        kind = f"{kind} of dtype {value.dtype}"
    elif isinstance(value, Tensor):
        kind = f"{kind} of layout {value.layout} on device {value.device}"
    raise DataError(f"{what} is of type {kind}; expected a dense tensor or a numpy array of numbers: convert it")
