"""Both layouts of CIFAR-10: pickled batches, and JPEG copies in archives."""

import io
import lzma
import pickle
import tarfile

import numpy as np
import pytest
import torch

from groupnorm.lab.data import DataError, load
from groupnorm.lab.data import archive as archive_module
from groupnorm.lab.data.cifar10 import CLASSES


def write_archive(path, split, jpeg, per_class=2, classes=CLASSES, size=32):
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w:xz") as archive:
        for number in reversed(range(per_class)):  # the order in the archive must not matter
            for label, name in enumerate(classes):
                data = jpeg(20 * label + number, size, size)
                info = tarfile.TarInfo(f"{split}/{name}/{number:04}.jpg")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))


@pytest.fixture
def jpegs(tmp_path, jpeg):
    for split, count in (("train", 3), ("test", 2)):
        write_archive(tmp_path / "cifar10-jpeg" / f"{split}.tar.xz", split, jpeg, count)
    return tmp_path


@pytest.fixture
def batches(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for i, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        pixels = np.random.default_rng(i).integers(0, 256, (10, 3072), dtype=np.uint8)
        content = {b"data": pixels, b"labels": list(range(10)), b"batch_label": name.encode()}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    return tmp_path


def test_jpegs_are_labelled_by_folder_and_mixed(jpegs):
    data = load("cifar10", jpegs)
    assert data.train_images.shape == (30, 3, 32, 32)
    assert data.val_images.shape == (20, 3, 32, 32)
    assert torch.equal((data.train_images[:, 0, 0, 0] / 20).long(), data.train_labels)
    assert data.train_labels.tolist() != sorted(data.train_labels.tolist())
    assert "lossy" in data.note
    assert data.classes == CLASSES


def test_only_chosen_jpegs_are_decoded(jpegs, monkeypatch):
    decoded = []
    decode = archive_module.decode
    monkeypatch.setattr(archive_module, "decode", lambda data, where: decoded.append(where) or decode(data, where))
    limited = load("cifar10", jpegs, limit_train=5, limit_val=4)
    assert len(decoded) == 5 + 4 + 1  # one more to learn the size
    assert len(set(decoded)) == 9
    assert torch.equal((limited.train_images[:, 0, 0, 0] / 20).long(), limited.train_labels)


@pytest.mark.parametrize("part", [0, 0.1, 0.5, 0.99])
def test_a_damaged_archive_is_named(jpegs, part):
    path = jpegs / "cifar10-jpeg" / "train.tar.xz"
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data))])
    with pytest.raises(DataError, match=r"train\.tar\.xz is cut short or damaged"):
        load("cifar10", jpegs)


@pytest.mark.parametrize("kept", [20_000, 20_480, 21_000])
def test_a_tar_cut_short_before_compression_is_named(jpegs, kept):
    path = jpegs / "cifar10-jpeg" / "train.tar.xz"
    path.write_bytes(lzma.compress(lzma.decompress(path.read_bytes())[:kept]))
    with pytest.raises(DataError, match=r"train\.tar\.xz is cut short or damaged"):
        load("cifar10", jpegs)


def test_archives_of_something_else_are_refused(jpegs, jpeg):
    path = jpegs / "cifar10-jpeg" / "train.tar.xz"
    write_archive(path, "train", jpeg, classes=CLASSES[:9])
    with pytest.raises(DataError, match=r"expected SPLIT/CLASS/FILE\.jpg with the classes"):
        load("cifar10", jpegs)
    write_archive(path, "train", jpeg, size=16)
    with pytest.raises(DataError, match=r"has shape \(3, 16, 16\); expected \(3, 32, 32\)"):
        load("cifar10", jpegs)
    write_archive(path, "train", lambda *_: b"not a jpeg")
    with pytest.raises(DataError, match=r"train\.tar\.xz: train/\w+/000\d\.jpg is not a whole"):
        load("cifar10", jpegs)


def test_batches_are_read_and_preferred(batches, jpegs):
    data = load("cifar10", batches)
    assert data.train_images.shape == (50, 3, 32, 32)
    assert data.val_images.shape == (10, 3, 32, 32)
    assert data.note == ""
    first = np.random.default_rng(0).integers(0, 256, (10, 3072), dtype=np.uint8)
    assert torch.equal(data.train_images[:10].flatten(1), torch.from_numpy(first))
    assert data.train_labels.tolist() == list(range(10)) * 5


def test_batches_pickled_by_python_2_are_read(batches):
    """The dtype's flags are the integers 0 and 1 there, and the pixels a byte string."""
    pixels = bytes(3072)
    path = batches / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(
        b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x01M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89T" + len(pixels).to_bytes(4, "little") + pixels + b"tbU\x06labels]K\x03au."
    )
    data = load("cifar10", batches)
    assert data.val_images.shape == (1, 3, 32, 32)
    assert data.val_labels.tolist() == [3]


class Harmful:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x02}",
        pickle.dumps({b"data": Harmful(), b"labels": []}),
        pickle.dumps({b"labels": [1]}),
        pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]}, protocol=2),
        pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [10]}, protocol=2),
    ],
)
def test_a_damaged_batch_is_named_and_runs_no_code(batches, content, capsys):
    (batches / "cifar-10-batches-py" / "data_batch_3").write_bytes(content)
    with pytest.raises(DataError, match=r"data_batch_3 is not a batch of CIFAR-10 .*; replace it"):
        load("cifar10", batches)
    assert capsys.readouterr().out == ""


def test_real_cifar10(real_data):
    data = load("cifar10", real_data("cifar10-jpeg"), limit_train=300, limit_val=100)
    assert data.train_images.shape == (300, 3, 32, 32)
    assert data.val_images.shape == (100, 3, 32, 32)
    assert len(data.train_labels.unique()) == 10
    assert torch.allclose(data.mean.flatten() / 255, torch.tensor([0.491, 0.482, 0.447]), atol=0.03)
