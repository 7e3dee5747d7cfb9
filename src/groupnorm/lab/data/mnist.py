"""MNIST and Fashion-MNIST: four idx files each, of the same names and sizes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from groupnorm.lab.data.data_paths import Place, obtain
from groupnorm.lab.data.download import from_torchvision
from groupnorm.lab.data.errors import DataError
from groupnorm.lab.data.idx import read_idx
from groupnorm.lab.data.source import Source, Split

FILES = tuple(
    f"{split}-{content}-ubyte.gz" for split in ("train", "t10k") for content in ("images-idx3", "labels-idx1")
)
DIGITS = tuple("0123456789")
GARMENTS = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def open_mnist(data_dir: Path) -> Source:
    """MNIST, 60,000 + 10,000 images ``[1, 28, 28]``. Source: LeCun, Bottou, Bengio & Haffner 1998."""
    return _open("mnist", "MNIST", DIGITS, data_dir)


def open_fashion_mnist(data_dir: Path) -> Source:
    """Fashion-MNIST, 60,000 + 10,000 images ``[1, 28, 28]``. Source: Xiao, Rasul & Vollgraf, arXiv:1708.07747."""
    return _open("fashion-mnist", "FashionMNIST", GARMENTS, data_dir)


def _open(name: str, folder: str, classes: tuple[str, ...], data_dir: Path) -> Source:
    """Read the official files as they are: any gzip whose content is right, so recompressed copies work too.

    Raises:
        DataError: the files are nowhere and cannot be downloaded, or one is damaged.
    """
    places = [Place(data_dir / folder / "raw", FILES), Place(data_dir / folder, FILES), Place(data_dir / name, FILES)]
    other = {"MNIST": "FashionMNIST", "FashionMNIST": "MNIST"}[folder]
    if other not in data_dir.parts:  # the files of both have the same names
        places.append(Place(data_dir, FILES))
    found = obtain(name, places, partial(from_torchvision, folder, f"{folder}/raw/*.gz", data_dir)).folder
    train, val = (_read(found, split, len(classes)) for split in ("train", "t10k"))
    return Source(train, val, classes)


def _read(folder: Path, split: str, num_classes: int) -> Split:
    image_file, label_file = (folder / file for file in FILES if file.startswith(split))
    images, labels = read_idx(image_file), read_idx(label_file)
    if images.dim() != 3:
        raise DataError(f"{image_file} holds sizes {tuple(images.shape)}; expected (n, height, width): replace it")
    if labels.shape != images.shape[:1] or int(labels.max()) >= num_classes:
        raise DataError(
            f"{label_file} holds sizes {tuple(labels.shape)} and labels up to {int(labels.max())}; expected one label "
            f"below {num_classes} for each of the {len(images)} images in {image_file.name}: replace both"
        )
    return Split.in_memory(images.unsqueeze(1), labels.long())
