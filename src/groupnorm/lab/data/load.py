"""From the name of a dataset to its images."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import cast

from torch import Tensor

from groupnorm.lab.data.catalog import open_source
from groupnorm.lab.data.data_paths import default_data_dir
from groupnorm.lab.data.dataset import Dataset, Images, channel_stats, digest
from groupnorm.lab.data.errors import DataError
from groupnorm.lab.data.images import check_memory, to_square
from groupnorm.lab.data.source import Split, choose


def load(
    name: str,
    data_dir: Path | None = None,
    *,
    image_size: int | None = None,
    limit_train: int | None = None,
    limit_val: int | None = None,
) -> Dataset:
    """Open a dataset; the same arguments give the same images in the same order in every process.

    The images are in memory, but for those of ImageNet, which are read when they are asked for.

    Args:
        name: a name of :data:`groupnorm.lab.data.DATASETS`; "folder:PATH" or PATH, of images in
            ``train/CLASS/*.jpg`` and ``val/CLASS/*.jpg``; or "package.module:function", a function that returns
            ``(train_images, train_labels, val_images, val_labels)``.
        data_dir: where datasets lie and are downloaded to. Default: ``$GROUPNORM_DATA_DIR``, else
            ``~/.cache/groupnorm``.
        image_size: resize the shorter side to this many pixels (bilinear, antialiased) and crop a square from the
            centre. Default: as stored; of ImageNet 224, and the shorter side becomes 256/224 of it.
        limit_train: use only so many training images, drawn at random but always the same. Default: all.
        limit_val: the same for validation.

    Raises:
        UnknownNameError: ``name`` is unknown; lists the known ones and the nearest match.
        DataError: the data is missing and cannot be downloaded, is damaged, is not of the form expected, needs
            more memory than 4 GiB, or has fewer images than a limit.

    Example::

        >>> data = load("digits", limit_train=500)
        >>> x = data.batch(data.train_images[:32])
    """
    if image_size is not None and image_size < 1:
        raise DataError(
            f"image_size={image_size}; expected at least 1 pixel, or None (no --image-size) for the size stored"
        )
    source = open_source(name, Path(os.path.expanduser(data_dir)) if data_dir else default_data_dir(), image_size)
    train = choose(len(source.train.labels), limit_train, "limit_train")
    val = choose(len(source.val.labels), limit_val, "limit_val")
    train_labels, val_labels = source.train.labels[train], source.val.labels[val]
    if len(train_labels.unique()) < 2:
        raise DataError(
            f"limit_train={limit_train}: the {len(train)} images are of one class, so every answer is right; expected "
            f"two classes or more: raise limit_train (--limit-train)"
        )
    first = _first(source.train, train, image_size)
    if isinstance(first, Tensor):
        check_memory(name, first, len(train) + len(val))
    train_images, val_images = _both((source.train, train), (source.val, val), image_size)
    if (train_images.dtype, train_images.shape[1:]) != (val_images.dtype, val_images.shape[1:]):
        raise DataError(
            f"dataset {name!r}: training images are {train_images.dtype} of shape {tuple(train_images.shape[1:])}, "
            f"validation images {val_images.dtype} of shape {tuple(val_images.shape[1:])}; expected the same: "
            f"convert one, or set image_size (--image-size) if only height and width differ"
        )
    mean, std = source.statistics or channel_stats(cast(Tensor, train_images))
    return Dataset(
        name=name,
        train_images=train_images,
        train_labels=train_labels,
        val_images=val_images,
        val_labels=val_labels,
        num_classes=len(source.classes),
        mean=mean,
        std=std,
        digest=digest(train_images, train_labels, val_images, val_labels),
        note=source.note,
        classes=source.classes,
    )


def _first(split: Split, chosen: Tensor, image_size: int | None) -> Images | None:
    """The first image that can be read."""
    for index in chosen.split(1):
        with suppress(DataError):
            return _read(split, index, image_size)
    return None


def _both(train: tuple[Split, Tensor], val: tuple[Split, Tensor], image_size: int | None) -> list[Images]:
    """The images of both splits; what is wrong with either is one error."""
    images, problems = [], []
    for split, chosen in (train, val):
        try:
            images.append(_read(split, chosen, image_size))
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))
    return images


def _read(split: Split, chosen: Tensor, image_size: int | None) -> Images:
    images = split.read(chosen)
    return to_square(images, image_size) if isinstance(images, Tensor) else images.resized(image_size)
