"""A folder of the user's: ``train/CLASS/*.jpg`` and ``val/CLASS/*.jpg``."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from groupnorm.lab.data.dataset import DataError
from groupnorm.lab.data.images import decode, to_square
from groupnorm.lab.data.source import Source, Split, permutation

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def open_folder(root: Path, image_size: int | None) -> Source:
    """Find the images of a folder; each becomes ``[3, H, W]`` when it is read.

    The classes are the folders in ``train``, sorted; a validation folder may lack some. The order within a split
    is the fixed permutation of the sorted names, so that classes are mixed.

    Args:
        root: holds ``train`` and either ``val`` or ``test``.
        image_size: shorter side after resizing, and side of the crop; None when all images have one size.

    Raises:
        DataError: a folder is missing or empty, or validation has a class that training has not.
    """
    train, val = _split_folder(root, "train"), _split_folder(root, "val", "test")
    classes = tuple(_folders(train))
    if unknown := set(_folders(val)) - set(classes):
        raise DataError(f"{val} has the classes {sorted(unknown)}, which {train} has not; expected some of {classes}")
    return Source(_split(train, classes, image_size), _split(val, classes, image_size), classes)


def _split_folder(root: Path, *names: str) -> Path:
    for name in names:
        if (root / name).is_dir():
            return root / name
    found = _folders(root) if root.is_dir() else "no such directory"
    raise DataError(
        f"{root} has no folder {' or '.join(names)} (found: {found}); expected train/CLASS/*.jpg and "
        f"val/CLASS/*.jpg (or test/) in it"
    )


def _folders(root: Path) -> list[str]:
    return sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _split(root: Path, classes: tuple[str, ...], image_size: int | None) -> Split:
    found: list[tuple[str, int]] = []
    for label, name in enumerate(classes):
        files = [p for p in (root / name).rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")]
        if not files and root.name == "train":
            raise DataError(f"{root / name} has no image; expected files that end in {', '.join(SUFFIXES)}")
        found += sorted((file.as_posix(), label) for file in files)
    if not found:
        raise DataError(f"{root} has no CLASS/IMAGE; expected files that end in {', '.join(SUFFIXES)}")
    found = [found[i] for i in permutation(len(found)).tolist()]

    def one(index: int) -> Tensor:
        path = Path(found[index][0])
        return to_square(decode(path.read_bytes(), str(path)).unsqueeze(0), image_size)[0]

    def read(indices: Tensor) -> Tensor:
        chosen = indices.tolist()
        images = torch.empty((len(chosen), *one(chosen[0]).shape), dtype=torch.uint8)

        def fill(image: Tensor, index: int) -> None:
            pixels = one(index)
            if pixels.shape != image.shape:
                raise DataError(
                    f"{found[index][0]} has shape {tuple(pixels.shape)}, {found[chosen[0]][0]} has "
                    f"{tuple(image.shape)}; expected one size: set image_size"
                )
            image.copy_(pixels)

        with ThreadPoolExecutor() as pool:
            list(pool.map(fill, images, chosen))  # raises the first error, and then does no more
        return images

    return Split(torch.tensor([label for _, label in found]), read)
