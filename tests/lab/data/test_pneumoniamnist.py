"""PneumoniaMNIST: which split is used for what, and how damage is reported."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import utils

from groupnorm.lab.data import DataError, load


def write(path, **changes):
    random = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 8), ("val", 2), ("test", 4)):
        arrays[f"{split}_images"] = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count, dtype=np.uint8) % 2)[:, None]
    arrays |= changes
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **{name: array for name, array in arrays.items() if array is not None})
    return arrays


@pytest.mark.parametrize("folder", ["pneumoniamnist", "."])
def test_the_official_test_images_validate(tmp_path, folder):
    written = write(tmp_path / folder / "pneumoniamnist.npz")
    data = load("pneumoniamnist", tmp_path)
    assert torch.equal(data.train_images[:, 0], torch.from_numpy(written["train_images"]))
    assert torch.equal(data.val_images[:, 0], torch.from_numpy(written["test_images"]))
    assert data.train_labels.tolist() == [0, 1] * 4
    assert (data.val_labels.dtype, data.val_labels.tolist()) == (torch.int64, [0, 1] * 2)
    assert data.classes == ("normal", "pneumonia")
    assert "official test images validate" in data.note
    assert "official validation images are not used" in data.note


@pytest.mark.parametrize("part", [0, 0.5, 0.99])
def test_a_file_cut_short_is_named(tmp_path, part):
    path = tmp_path / "pneumoniamnist.npz"
    write(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data))])
    with pytest.raises(DataError, match=r"pneumoniamnist\.npz is not the file of PneumoniaMNIST .*; replace it"):
        load("pneumoniamnist", tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"test_images": None},
        {"train_images": np.zeros((8, 28, 28))},
        {"train_images": np.zeros((8, 3, 28, 28), np.uint8)},
        {"train_images": np.zeros((7, 28, 28), np.uint8)},
        {"test_labels": np.full((4, 1), 2, np.uint8)},
        {"test_labels": np.zeros(4, np.uint8)},
        {"train_labels": np.zeros((8, 1))},
        {"train_labels": np.array([[None]] * 8, dtype=object)},  # would be a pickle
    ],
)
def test_a_file_of_another_content_is_named(tmp_path, changes):
    write(tmp_path / "pneumoniamnist.npz", **changes)
    with pytest.raises(DataError, match=r"pneumoniamnist\.npz is not the file of PneumoniaMNIST"):
        load("pneumoniamnist", tmp_path)


@pytest.mark.parametrize("content", [b"<html>error</html>", b"\x80\x04N."])
def test_a_file_of_another_kind_is_named(tmp_path, content):
    path = tmp_path / "pneumoniamnist.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"pneumoniamnist\.npz is not the file of PneumoniaMNIST"):
        load("pneumoniamnist", tmp_path)
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(DataError, match=r"pneumoniamnist\.npz is not the file of PneumoniaMNIST"):
        load("pneumoniamnist", tmp_path)


def test_it_is_downloaded_once_and_checked(tmp_path, monkeypatch):
    asked = []

    def get(url, root, filename, md5):
        asked.append((url, md5))
        write(Path(root) / filename)

    monkeypatch.setattr(utils, "download_url", get)
    assert len(load("pneumoniamnist", tmp_path).train_labels) == 8
    assert [p.name for p in tmp_path.iterdir()] == ["pneumoniamnist"]
    assert len(load("pneumoniamnist", tmp_path).train_labels) == 8
    url = "https://zenodo.org/records/10519652/files/pneumoniamnist.npz"
    assert asked == [(url, "28209eda62fecd6e6a2d98b1501bb15f")]


def test_a_failed_download_leaves_nothing(tmp_path, monkeypatch):
    def get(url, root, filename, md5):
        write(Path(root) / filename)
        raise RuntimeError("File not found or corrupted.")

    monkeypatch.setattr(utils, "download_url", get)
    with pytest.raises(DataError, match=r"zenodo\.org/records/10519652/.*: RuntimeError: File not found or corrupted"):
        load("pneumoniamnist", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_real_pneumoniamnist(real_data):
    data = load("pneumoniamnist", real_data("pneumoniamnist"))
    assert data.train_images.shape == (4708, 1, 28, 28)
    assert data.val_images.shape == (624, 1, 28, 28)
    assert data.train_labels.bincount().tolist() == [1214, 3494]
    assert data.val_labels.bincount().tolist() == [234, 390]
