"""Downloads: whole or not at all, and never a wait without end. torchvision is replaced by stubs."""

import threading
import time
from pathlib import Path

import pytest
import torch
from torchvision import datasets

from groupnorm.lab.data import DataError, load
from groupnorm.lab.data import download as download_module


@pytest.fixture
def replace(monkeypatch):
    def stub(write, name="FashionMNIST"):
        def dataset(root, download):
            assert download
            write(Path(root))

        monkeypatch.setattr(datasets, name, dataset)

    return stub


def test_files_arrive_and_are_not_downloaded_twice(tmp_path, replace, write_mnist):
    replace(lambda root: write_mnist(root / "FashionMNIST" / "raw"))
    first = load("fashion-mnist", tmp_path / "new")
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["FashionMNIST"]
    assert len(list((tmp_path / "new" / "FashionMNIST" / "raw").iterdir())) == 4
    replace(lambda root: pytest.fail("downloaded again"))
    assert load("fashion-mnist", tmp_path / "new").digest == first.digest


def test_only_what_is_read_is_kept(tmp_path, replace):
    def write(root):
        (root / "cifar-10-python.tar.gz").write_bytes(b"archive")
        (root / "cifar-10-batches-py").mkdir()
        for name in ("readme.html", "test_batch"):
            (root / "cifar-10-batches-py" / name).write_bytes(b"")

    replace(write, "CIFAR10")
    with pytest.raises(DataError, match="it ended without an error and without the files"):
        load("cifar10", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["cifar-10-batches-py"]


def test_an_interrupted_download_leaves_nothing(tmp_path, replace, write_mnist):
    def write(root):
        write_mnist(root / "FashionMNIST" / "raw")
        raise ConnectionResetError("connection lost\nhere")

    replace(write)
    with pytest.raises(DataError) as caught:
        load("fashion-mnist", tmp_path)
    message = str(caught.value)
    for place in ("FashionMNIST/raw", "FashionMNIST", "fashion-mnist", ""):
        assert f"{tmp_path / place}: " in message
    assert "train-images-idx3-ubyte.gz" in message
    assert "ConnectionResetError: connection lost here" in message
    assert "GROUPNORM_DATA_DIR" in message
    assert list(tmp_path.iterdir()) == []


def test_a_stalled_download_is_given_up(tmp_path, replace, monkeypatch):
    monkeypatch.setattr(download_module, "STALL_SECONDS", 0.2)
    release = threading.Event()

    def write(root):
        for _ in range(4):  # slow, but moving: not given up
            time.sleep(0.1)
            with (root / "part").open("ab") as file:
                file.write(b"x")
        release.wait(30)

    replace(write)
    start = time.monotonic()
    with pytest.raises(DataError, match=r"nothing arrived for 0\.2 s"):
        load("fashion-mnist", tmp_path)
    assert 0.4 < time.monotonic() - start < 5
    assert list(tmp_path.iterdir()) == []
    release.set()


@pytest.mark.usefixtures("offline")
def test_missing_files_are_named(tmp_path, write_mnist):
    write_mnist(tmp_path / "MNIST" / "raw")
    (tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"MNIST/raw: lacks t10k-labels-idx1-ubyte\.gz\n"):
        load("mnist", tmp_path)


@pytest.mark.usefixtures("offline")
def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="could not be written to"):
        load("mnist", tmp_path / "file" / "data")


def test_without_a_network_it_fails_soon(tmp_path, monkeypatch):
    """The real class of torchvision, with every connection refused."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    start = time.monotonic()
    for name in ("mnist", "fashion-mnist", "cifar10", "pneumoniamnist"):
        with pytest.raises(DataError, match="a download was tried and failed"):
            load(name, tmp_path)
    assert time.monotonic() - start < 10
    assert torch.equal(load("digits").train_labels[:1], load("digits", tmp_path).train_labels[:1])
