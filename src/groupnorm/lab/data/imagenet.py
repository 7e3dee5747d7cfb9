"""ImageNet, as everybody has it on disk; read on demand."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

from groupnorm.lab.data.data_paths import DATA_DIR_VARIABLE
from groupnorm.lab.data.errors import DataError
from groupnorm.lab.data.files import ImageFiles
from groupnorm.lab.data.image_index import LabelledFile, images_in, list_splits
from groupnorm.lab.data.source import Source, Split

FOLDERS = ("imagenet", "ILSVRC2012", "ImageNet")
WHOLE = (1000, 1_281_167, 50_000)
"""Classes, training and validation images."""

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""Of red, green and blue in the range 0..1. Source: fb.resnet.torch, datasets/imagenet.lua."""


def open_imagenet(data_dir: Path) -> Source:
    """ImageNet-1k: 1,281,167 + 50,000 images, in ``train/SYNSET/*.JPEG`` and ``val/SYNSET/*.JPEG``.

    They become ``[3, 224, 224]`` when they are read. A part of the classes or of the images will do; the note says
    so. Channels are standardised with the published means and deviations. What identifies the data is the names and
    the sizes of the files, not their content, so that planning does not read 140 GB.

    Source: Russakovsky et al. 2015, arXiv:1409.0575, https://image-net.org.

    Raises:
        DataError: the images are not there, or not sorted into a folder for each class.
    """
    roots = [data_dir / folder for folder in FOLDERS]
    root = next((root for root in roots if root.is_dir()), None)
    if root is None:
        raise DataError(
            f"dataset 'imagenet' was not found; looked for {', '.join(map(str, roots))}. It is not downloaded: get "
            f"ILSVRC2012 from https://image-net.org (after registration) and unpack it as "
            f"imagenet/train/n01440764/*.JPEG and imagenet/val/n01440764/*.JPEG, a folder for each class, in the "
            f"folder that --data-dir or the environment variable {DATA_DIR_VARIABLE} names"
        )
    _check_sorted(root / "val")
    classes, train, val, note = list_splits(root)
    found = (len(classes), len(train), len(val))
    if found != WHOLE:
        parts = (f"{n:,} of {of:,}" for n, of in zip(found, WHOLE, strict=True))
        part = "a part of ImageNet ({} classes, {} training and {} validation images): ".format(*parts)
        note = "; ".join([f"{part}figures are not comparable with published ones", *([note] if note else [])])
    return Source(_split(root, train), _split(root, val), classes, note, (_channels(MEAN), _channels(STD)))


def _split(root: Path, files: list[LabelledFile]) -> Split:
    def read(indices: Tensor) -> ImageFiles:
        return ImageFiles(root, [files[i][0] for i in indices.tolist()])

    return Split(torch.tensor([label for _, label in files]), read)


def _channels(values: tuple[float, ...]) -> Tensor:
    return 255 * torch.tensor(values).view(3, 1, 1)


def _check_sorted(val: Path) -> None:
    """Refuse the validation images as their archive unpacks them: 50,000 in one folder."""
    if val.is_dir() and not any(entry.is_dir() for entry in val.iterdir()) and (found := images_in(val, Counter())):
        raise DataError(
            f"{val} holds {len(found):,} images and no folders; expected a folder for each class, such as "
            f"val/n01440764: sort them with https://raw.githubusercontent.com/soumith/imagenetloader.torch/master/"
            f"valprep.sh, run in val, or let torchvision.datasets.ImageNet(ROOT, 'val') unpack ILSVRC2012_img_val.tar "
            f"with ILSVRC2012_devkit_t12.tar.gz beside it"
        )
