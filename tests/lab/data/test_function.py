"""Datasets from a function of the user's own."""

import sys
from types import ModuleType

import numpy as np
import pytest
import torch

from groupnorm.errors import ArgumentError
from groupnorm.lab.data import DataError, load

X = np.random.default_rng(0).random((6, 2, 5, 4), dtype=np.float32)
Y = np.array([0, 1, 2, 0, 1, 2])


@pytest.fixture
def returning(monkeypatch):
    """``returning(*values)``: a dataset name whose function returns them."""

    def name(*values):
        module = ModuleType("own_dataset")
        module.make = lambda: values
        monkeypatch.setitem(sys.modules, "own_dataset", module)
        return "own_dataset:make"

    return name


def test_arrays_and_tensors(returning):
    data = load(returning(X, Y, torch.from_numpy(X[:3]), torch.tensor([0, 1, 1], dtype=torch.int32)))
    assert torch.equal(data.train_images, torch.from_numpy(X))
    assert data.val_labels.tolist() == [0, 1, 1]
    assert data.val_labels.dtype == torch.int64
    assert data.num_classes == 3
    assert data.mean.shape == (2, 1, 1)
    assert load("own_dataset:make", image_size=3, limit_train=4).train_images.shape == (4, 2, 3, 3)


def test_arrays_that_torch_cannot_share(returning):
    fixed = X.copy()
    fixed.flags.writeable = False
    data = load(returning(fixed, Y[::-1].astype(np.uint16), X[::-1], Y))
    assert data.train_labels.tolist() == Y[::-1].tolist()
    assert torch.equal(data.val_images, torch.from_numpy(X[::-1].copy()))


BIG = np.arange(480, dtype=np.float32).reshape(6, 4, 4, 5)


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (BIG.astype(">f4"), Y.astype(">i8")),
        (np.asfortranarray(BIG), Y.astype(">u2")),
        (torch.from_numpy(BIG).contiguous(memory_format=torch.channels_last), torch.tensor(Y).to(torch.uint8)),
        (np.repeat(BIG, 2, 0)[::2], np.stack([Y, Y + 7], 1)[:, 0]),
        (torch.from_numpy(BIG).requires_grad_(), torch.from_numpy(Y).int()),
    ],
)
def test_the_same_values_are_the_same_dataset_however_they_are_stored(returning, images, labels):
    plain = load(returning(BIG, Y, BIG, Y))
    assert load(returning(images, labels, images, labels)).digest == plain.digest


@pytest.mark.parametrize("shape", [(24, 32, 3), (24, 32, 1), (9, 9, 4), (28, 28, 1), (32, 24, 2)])
def test_channels_on_the_last_axis_are_refused_with_two_remedies(returning, shape):
    images = np.random.default_rng(0).random((6, *shape), dtype=np.float32)
    with pytest.raises(
        DataError, match=rf"looks like \(n, H, W, C\).*permute the axes .*{shape[0]} channels, exchange"
    ):
        load(returning(images, Y, images, Y))
    for permuted in (images.transpose(0, 3, 1, 2), images.transpose(0, 1, 3, 2)):
        assert load(returning(permuted, Y, permuted, Y)).note == ""


@pytest.mark.parametrize(
    "shape",
    [(64, 7, 7), (13, 32, 32), (200, 9, 9), (64, 3, 3), (512, 1, 1), (3, 32, 3), (1, 9, 4), (22, 1, 99), (4, 50, 1)],
)
def test_many_channels_and_narrow_images_pass(returning, shape):
    images = np.random.default_rng(0).random((6, *shape), dtype=np.float32)
    assert load(returning(images, Y, images, Y)).note == ""


def test_what_may_be_channels_on_the_last_axis_is_noted(returning):
    images = np.random.default_rng(0).random((6, 9, 9, 13), dtype=np.float32)
    assert load(returning(images, Y, images, Y)).note == "train_images was taken for 9 channels of 9x13"


def test_classes_that_validation_lacks_are_noted(returning):
    assert load(returning(X, Y, X, Y * 0)).note == "val_labels lacks 2 of the 3 classes"


def test_numbers_at_the_edges_of_float32_are_standardised(returning):
    for scale in (1e-44, 1e-38, 1e36):
        images = X * np.float32(scale)
        data = load(returning(images, Y, images, Y))
        assert data.batch(data.train_images).isfinite().all()
    images = X * np.float32(1e36)
    data = load(returning(images, Y, images, Y))
    assert data.batch(data.train_images).std().item() == pytest.approx(1, abs=0.02)


def test_modules_in_the_current_folder_are_found(tmp_path, monkeypatch):
    (tmp_path / "dataset_beside.py").write_text(
        "import torch\n"
        "def make():\n"
        "    images = torch.arange(32, dtype=torch.uint8).view(2, 1, 4, 4)\n"
        "    return images, torch.tensor([0, 1]), images, torch.tensor([1, 0])\n"
        "def fail():\n"
        "    raise KeyError('mine')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    assert load("dataset_beside:make").val_labels.tolist() == [1, 0]
    with pytest.raises(KeyError, match="mine"):
        load("dataset_beside:fail")
    with pytest.raises(ArgumentError, match="cannot be imported: AttributeError"):
        load("dataset_beside:mke")
    with pytest.raises(ArgumentError, match="cannot be imported: ModuleNotFoundError"):
        load("no_such_module:make")
    with pytest.raises(ArgumentError, match="is of type module; expected a function or class"):
        load("dataset_beside:torch")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((X, Y), "returned 2 values; expected .train_images, train_labels, val_images, val_labels"),
        ((X, list(Y), X, Y), "train_labels is of type list; expected a dense tensor or a numpy array"),
        ((X.astype(object), Y, X, Y), "train_images is of type ndarray of dtype object"),
        ((X[:, 0], Y, X, Y), r"train_images has shape \(6, 5, 4\).*: add the channel axis with images\[:, None\]"),
        ((X[:0], Y[:0], X, Y), "not empty"),
        ((np.zeros((6, 9, 9, 3), np.uint8), Y, X, Y), r"looks like \(n, H, W, C\).*permute the axes \(0, 3, 1, 2\)"),
        ((X, Y, X.astype(np.float64), Y), "val_images .* dtype torch.float64; expected uint8 or float32"),
        ((np.where(X > 0.5, np.float32(np.nan), X), Y, X, Y), "holds NaN, infinity or values beyond"),
        ((X, Y.astype(np.float32), X, Y), "train_labels .* expected class numbers of an integer dtype"),
        ((X, Y > 0, X, Y), "dtype torch.bool; expected class numbers"),
        ((X, Y[:5], X, Y), r"train_labels has shape \(5,\).*expected \(6,\), one label for each image"),
        ((X, np.eye(6, dtype=int), X, Y), r"shape \(6, 6\)"),
        ((X, Y - 1, X, Y), "goes down to -1; expected 0 to K-1"),
        ((X, Y + 1, X, Y), "3 different values up to 3"),
        ((X, Y, X, Y + 1), "val_labels goes up to 3; expected every label of 0 to K-1 in training"),
        ((X, Y, (X * 255).astype(np.uint8), Y), "validation images torch.uint8 .*expected the same"),
        (
            (X, Y[:, None], X, Y),
            r"expected \(6,\), one label for each image: drop an axis with labels\[:, 0\], turn one-",
        ),
        (
            (X.transpose(1, 2, 3, 0), Y, X, Y),
            r"train_labels has shape \(6,\).*train_images has 2 of them on its first axis",
        ),
        ((X, Y * 0, X, Y * 0), "train_labels holds 0 only, so every answer is right; expected two classes or more"),
        ((X, Y * 0 + 4, X, Y * 0), "train_labels holds 4 only"),
        ((X.astype(np.uint8), Y, X.astype(np.uint8), Y), "train_images .* holds 0 only; .*multiply by 255"),
        ((X * np.float32(3e38), Y, X, Y), "values beyond 1e.37"),
        ((X.astype(np.longdouble), Y, X, Y), "train_images is of type ndarray of dtype float128"),
        ((np.ma.masked_greater(X, 0.5), Y, X, Y), "train_images is of type MaskedArray of dtype float32"),
        ((torch.from_numpy(X).to_sparse(), Y, X, Y), "train_images is of type Tensor of layout torch.sparse_coo"),
        ((X, torch.tensor(Y, device="meta"), X, Y), "train_labels is of type Tensor of layout .* on device meta"),
        ((X, Y, X[:, :1], Y), r"validation images torch.float32 of shape \(1, 5, 4\)"),
    ],
)
def test_what_does_not_fit_is_explained(returning, values, message):
    with pytest.raises(DataError, match=message):
        load(returning(*values))


def test_a_single_value_is_explained(monkeypatch):
    module = ModuleType("own_dataset")
    module.make = lambda: None
    monkeypatch.setitem(sys.modules, "own_dataset", module)
    with pytest.raises(DataError, match="returned a NoneType; expected"):
        load("own_dataset:make")
