"""Small files in the formats that the loaders read."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor


def write_idx(path: Path, values: Tensor) -> None:
    header = struct.pack(f">HBB{values.dim()}I", 0, 8, values.dim(), *values.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(header + values.to(torch.uint8).numpy().tobytes()))


@pytest.fixture
def write_mnist() -> Callable[[Path], tuple[Tensor, ...]]:
    """Write the four files of 20 + 10 random images 4x4 into a folder; return what they hold."""

    def write(folder: Path) -> tuple[Tensor, ...]:
        written = []
        for split, count in (("train", 20), ("t10k", 10)):
            images = torch.randint(0, 256, (count, 4, 4), dtype=torch.uint8)
            labels = torch.arange(count) % 10
            write_idx(folder / f"{split}-images-idx3-ubyte.gz", images)
            write_idx(folder / f"{split}-labels-idx1-ubyte.gz", labels)
            written += [images.unsqueeze(1), labels]
        return tuple(written)

    return write


@pytest.fixture
def jpeg() -> Callable[..., bytes]:
    """``jpeg(value, height, width)``: the bytes of a grey image."""

    def encode(value: int, height: int = 32, width: int = 32, form: str = "JPEG") -> bytes:
        from io import BytesIO

        from PIL import Image

        file = BytesIO()
        Image.fromarray(np.full((height, width, 3), value, dtype=np.uint8)).save(file, form)
        return file.getvalue()

    return encode


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads fail at once, network or not."""
    from torchvision import datasets

    def refuse(root: str, download: bool) -> None:
        raise RuntimeError("no network")

    for name in ("MNIST", "FashionMNIST", "CIFAR10"):
        monkeypatch.setattr(datasets, name, refuse)
