"""Images in a compressed tar archive, ``SPLIT/CLASS/FILE.jpg``, decoded only when chosen."""

from __future__ import annotations

import io
import lzma
import tarfile
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from groupnorm.lab.data.errors import DataError
from groupnorm.lab.data.images import decode, pixels
from groupnorm.lab.data.source import Split, permutation


def open_archive(path: Path, classes: tuple[str, ...], shape: tuple[int, int, int]) -> Split:
    """List a ``.tar.xz`` archive, in the fixed permutation of the sorted names, so that classes are mixed.

    The archive is decompressed into memory as a whole: the images in it stay compressed until they are read.

    Args:
        path: the archive.
        classes: names of the folders expected, by label.
        shape: ``(C, H, W)`` expected of every image.

    Raises:
        DataError: the archive is cut short or damaged, or does not have these classes. Names the file.
    """
    try:
        content = lzma.decompress(path.read_bytes())
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            members = {m.name: slice(m.offset_data, m.offset_data + m.size) for m in archive if m.isfile()}
        if not content.endswith(bytes(1024)):  # tarfile takes half a header for the end
            raise tarfile.TarError("it has no end mark")
    except (OSError, lzma.LZMAError, tarfile.TarError) as error:
        raise DataError(f"{path} is cut short or damaged ({error}); replace it") from error
    names = sorted(members)
    names = [names[i] for i in permutation(len(names)).tolist()]
    folders = [PurePosixPath(name).parent.name for name in names]
    if set(folders) != set(classes):
        raise DataError(
            f"{path} has the folders {sorted(set(folders))}; expected SPLIT/CLASS/FILE.jpg with the classes "
            f"{list(classes)}: replace it"
        )

    def read(indices: Tensor) -> Tensor:
        images = torch.empty((len(indices), *shape), dtype=torch.uint8)
        for image, index in zip(images, indices.tolist(), strict=True):
            where = f"{path}: {names[index]}"
            decoded = pixels(decode(content[members[names[index]]], where))
            if decoded.shape != shape:
                raise DataError(f"{where} has shape {tuple(decoded.shape)}; expected {shape}: replace the archive")
            image.copy_(decoded)
        return images

    return Split(torch.tensor([classes.index(folder) for folder in folders]), read)
