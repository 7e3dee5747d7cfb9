"""From the name of a dataset to its images in memory."""

from __future__ import annotations

from pathlib import Path

from groupnorm.lab.data.catalog import open_source
from groupnorm.lab.data.dataset import DataError, Dataset, channel_stats, digest
from groupnorm.lab.data.images import check_memory, to_square
from groupnorm.lab.data.places import default_data_dir
from groupnorm.lab.data.source import choose


def load(
    name: str,
    data_dir: Path | None = None,
    *,
    image_size: int | None = None,
    limit_train: int | None = None,
    limit_val: int | None = None,
) -> Dataset:
    """Load a dataset into memory; the same arguments give the same images in the same order in every process.

    Args:
        name: a name of :data:`groupnorm.lab.data.DATASETS`; "folder:PATH" or PATH, of images in
            ``train/CLASS/*.jpg`` and ``val/CLASS/*.jpg``; or "package.module:function", a function that returns
            ``(train_images, train_labels, val_images, val_labels)``.
        data_dir: where datasets lie and are downloaded to. Default: ``$GROUPNORM_DATA_DIR``, else
            ``~/.cache/groupnorm``.
        image_size: resize the shorter side to this many pixels (bilinear, antialiased) and crop a square from the
            centre. Default: as stored.
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
        raise DataError(f"image_size={image_size}; expected at least 1 pixel, or None for the size stored")
    source = open_source(name, Path(data_dir).expanduser() if data_dir else default_data_dir(), image_size)
    train = choose(len(source.train.labels), limit_train, "limit_train")
    val = choose(len(source.val.labels), limit_val, "limit_val")
    check_memory(name, to_square(source.train.read(train[:1]), image_size), len(train) + len(val))
    train_images = to_square(source.train.read(train), image_size)
    val_images = to_square(source.val.read(val), image_size)
    if (train_images.dtype, train_images.shape[1:]) != (val_images.dtype, val_images.shape[1:]):
        raise DataError(
            f"dataset {name!r}: training images are {train_images.dtype} of shape {tuple(train_images.shape[1:])}, "
            f"validation images {val_images.dtype} of shape {tuple(val_images.shape[1:])}; expected the same: "
            f"convert one, or set image_size if only height and width differ"
        )
    train_labels, val_labels = source.train.labels[train], source.val.labels[val]
    mean, std = channel_stats(train_images)
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
