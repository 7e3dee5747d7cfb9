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
        ((X, list(Y), X, Y), "train_labels is a list; expected a tensor or a numpy array"),
        ((X.astype(object), Y, X, Y), "train_images is an array of object"),
        ((X[:, 0], Y, X, Y), r"train_images has shape \(6, 5, 4\).*: add the channel axis with images\[:, None\]"),
        ((X[:0], Y[:0], X, Y), "not empty"),
        ((np.zeros((6, 9, 9, 3), np.uint8), Y, X, Y), r"looks like \(n, H, W, C\).*permute the axes \(0, 3, 1, 2\)"),
        ((X, Y, X.astype(np.float64), Y), "val_images .* dtype torch.float64; expected uint8 or float32"),
        ((np.where(X > 0.5, np.float32(np.nan), X), Y, X, Y), "holds NaN or infinity"),
        ((X, Y.astype(np.float32), X, Y), "train_labels .* expected class numbers of an integer dtype"),
        ((X, Y > 0, X, Y), "dtype torch.bool; expected class numbers"),
        ((X, Y[:5], X, Y), r"train_labels has shape \(5,\).*expected \(6,\), one label for each image"),
        ((X, np.eye(6, dtype=int), X, Y), r"shape \(6, 6\)"),
        ((X, Y - 1, X, Y), "goes down to -1; expected 0 to K-1"),
        ((X, Y + 1, X, Y), "3 different values up to 3"),
        ((X, Y, X, Y + 1), "val_labels goes up to 3; expected every label of 0 to K-1 in training"),
        ((X, Y, (X * 255).astype(np.uint8), Y), "validation images torch.uint8 .*expected the same"),
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
