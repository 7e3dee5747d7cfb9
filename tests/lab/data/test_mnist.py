"""idx files: where they are found, what they hold, and how damage is reported."""

import gzip

import pytest
import torch

from groupnorm.lab.data import DataError, load


@pytest.mark.parametrize("folder", ["FashionMNIST/raw", "FashionMNIST", "fashion-mnist", "."])
def test_files_are_read_as_they_are(tmp_path, write_mnist, folder):
    written = write_mnist(tmp_path / folder)
    data = load("fashion-mnist", tmp_path)
    read = (data.train_images, data.train_labels, data.val_images, data.val_labels)
    assert all(torch.equal(r, w) for r, w in zip(read, written, strict=True))
    assert data.classes[9] == "Ankle boot"


def test_the_environment_names_the_folder(tmp_path, write_mnist, monkeypatch):
    images = write_mnist(tmp_path / "MNIST" / "raw")[0]
    monkeypatch.setenv("GROUPNORM_DATA_DIR", str(tmp_path))
    assert torch.equal(load("mnist").train_images, images)


@pytest.mark.usefixtures("offline")
def test_one_is_not_taken_for_the_other(tmp_path, write_mnist):
    write_mnist(tmp_path / "FashionMNIST" / "raw")
    assert load("fashion-mnist", tmp_path / "FashionMNIST" / "raw").num_classes == 10
    with pytest.raises(DataError, match="not found"):
        load("mnist", tmp_path / "FashionMNIST" / "raw")


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("train-images-idx3-ubyte.gz", lambda data: data[: len(data) // 2], "cannot be read"),
        ("train-images-idx3-ubyte.gz", lambda data: b"not gzip", "cannot be read"),
        ("t10k-images-idx3-ubyte.gz", lambda data: data[:-9] + bytes(1) + data[-8:], "cannot be read"),
        ("t10k-images-idx3-ubyte.gz", lambda data: gzip.compress(gzip.decompress(data)[:-1]), "replace it"),
        ("t10k-images-idx3-ubyte.gz", lambda data: gzip.compress(b"\0\0"), "cannot be read"),
        ("t10k-images-idx3-ubyte.gz", lambda data: gzip.compress(b"<html>error</html>"), "replace it"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, write_mnist, file, damage, message):
    write_mnist(tmp_path)
    path = tmp_path / file
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=rf"{file}.*{message}"):
        load("mnist", tmp_path)


def test_labels_must_fit_the_images(tmp_path, write_mnist):
    write_mnist(tmp_path)
    train, val = (tmp_path / f"{split}-labels-idx1-ubyte.gz" for split in ("train", "t10k"))
    labels = train.read_bytes()
    train.write_bytes(val.read_bytes())
    with pytest.raises(DataError, match=r"sizes \(10,\).*20 images"):
        load("mnist", tmp_path)
    train.write_bytes(gzip.compress(gzip.decompress(labels)[:-1] + b"\x0a"))
    with pytest.raises(DataError, match=r"labels up to 10; expected one label below 10"):
        load("mnist", tmp_path)


def test_real_fashion_mnist(real_data):
    data = load("fashion-mnist", real_data("FashionMNIST"))
    assert data.train_images.shape == (60000, 1, 28, 28)
    assert data.val_images.shape == (10000, 1, 28, 28)
    assert data.train_labels[:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]
    assert round(float(data.mean) / 255, 4) == 0.2860  # as published
    assert round(float(data.std) / 255, 4) == 0.3530
    assert data.train_labels.bincount().tolist() == [6000] * 10
