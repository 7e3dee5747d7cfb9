"""Images from a function of the user's own, ``package.module:function``, checked."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from groupnorm.lab.data.errors import DataError
from groupnorm.lab.data.source import Source, Split
from groupnorm.lab.resolve import resolve


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
    if int(train.labels.max()) != count - 1 or int(val.labels.max()) >= count:
        raise DataError(
            f"{reference}: train_labels has {count} different values up to {int(train.labels.max())}, val_labels goes "
            f"up to {int(val.labels.max())}; expected every label of 0 to K-1 in training and no other: renumber them"
        )
    return Source(train, val, tuple(map(str, range(count))))


def _split(reference: str, name: str, images: Any, labels: Any) -> Split:
    images = _tensor(f"{reference}: {name}_images", images)
    labels = _tensor(f"{reference}: {name}_labels", labels)
    got = f"{reference}: {name}_images has shape {tuple(images.shape)} and dtype {images.dtype}"
    if images.dim() != 4 or not images.numel():
        remedy = "add the channel axis with images[:, None]" if images.dim() == 3 else "reshape them"
        raise DataError(f"{got}; expected (n, C, H, W), not empty: {remedy}")
    if images.shape[1] == images.shape[2] > 4 >= images.shape[3]:
        raise DataError(f"{got}, which looks like (n, H, W, C); expected (n, C, H, W): permute the axes (0, 3, 1, 2)")
    if images.dtype not in (torch.uint8, torch.float32):
        raise DataError(f"{got}; expected uint8 or float32: convert them")
    if images.is_floating_point() and not bool(images.isfinite().all()):
        raise DataError(f"{got} and holds NaN or infinity; expected finite values: replace or drop those images")
    got = f"{reference}: {name}_labels has shape {tuple(labels.shape)} and dtype {labels.dtype}"
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise DataError(f"{got}; expected class numbers of an integer dtype: convert them")
    if labels.shape != images.shape[:1]:
        raise DataError(f"{got}; expected ({len(images)},), one label for each image")
    labels = labels.long()
    if int(labels.min()) < 0:
        raise DataError(f"{got} and goes down to {int(labels.min())}; expected 0 to K-1: renumber them")
    return Split.in_memory(images, labels)


def _tensor(what: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return torch.from_numpy(np.require(value, requirements=["C", "W"]))
    kind = f"an array of {value.dtype}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
    raise DataError(f"{what} is {kind}; expected a tensor or a numpy array of numbers")
