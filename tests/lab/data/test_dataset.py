"""Statistics, fingerprint, limits and sizes, which are the same for every dataset."""

import subprocess
import sys

import pytest
import torch

from groupnorm.errors import UnknownNameError
from groupnorm.lab.data import DATASETS, OWN, DataError, default_data_dir, digits, load
from groupnorm.lab.data import images as images_module
from groupnorm.lab.data.dataset import channel_stats, digest
from groupnorm.lab.data.images import to_square
from groupnorm.lab.data.source import choose


def test_digits_are_whole_and_split_without_overlap():
    data = load("digits")
    assert data.train_images.shape == (1200, 1, 8, 8)
    assert data.val_images.shape == (597, 1, 8, 8)
    assert data.train_images.dtype == torch.uint8
    assert data.train_labels.dtype == torch.int64
    assert data.num_classes == len(data.classes) == 10
    assert int(data.train_images.max()) == 16
    assert data.note == ""

    from sklearn.datasets import load_digits

    ours = torch.cat([data.train_images, data.val_images]).flatten(1)
    labelled = torch.cat([ours, torch.cat([data.train_labels, data.val_labels]).unsqueeze(1)], dim=1)
    pixels, target = load_digits(return_X_y=True)
    theirs = torch.cat([torch.from_numpy(pixels), torch.from_numpy(target).unsqueeze(1)], dim=1)
    assert sorted(labelled.tolist()) == sorted(theirs.tolist())


def test_digits_load_without_the_import_of_scikit_learn(monkeypatch):
    """Which takes seconds, in every worker. Where its file is elsewhere, it is asked for."""
    code = "import sys; from groupnorm.lab.data import load; load('digits'); print('sklearn' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "False"
    beside = digits._table()
    monkeypatch.setattr(digits, "find_spec", lambda name: None)
    assert (digits._table() == beside).all()


def test_every_process_sees_the_same():
    code = "from groupnorm.lab.data import load; print(load('digits', limit_train=50).digest)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == load("digits", limit_train=50).digest


def test_batch_standardises_the_training_images():
    data = load("digits", limit_train=300)
    batch = data.batch(data.train_images)
    assert batch.dtype == torch.float32
    assert abs(float(batch.mean())) < 1e-5
    assert abs(float(batch.std(correction=0)) - 1) < 1e-5


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_channel_stats_are_those_of_float64(dtype):
    images = torch.randint(0, 256, (30, 3, 5, 4)).to(dtype)
    mean, std = channel_stats(images)
    exact = images.double().transpose(0, 1).flatten(1)
    assert mean.shape == std.shape == (3, 1, 1)
    torch.testing.assert_close(mean.flatten(), exact.mean(1).float(), rtol=1e-7, atol=0)
    torch.testing.assert_close(std.flatten(), exact.std(1, correction=0).float(), rtol=1e-7, atol=0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_std_of_a_constant_channel_is_one(dtype):
    images = torch.randint(0, 256, (30, 2, 5, 4)).to(dtype)
    images[:, 1] = 7
    _, std = channel_stats(images)
    assert float(std[1]) == 1
    assert float(std[0]) > 1
    _, std = channel_stats(torch.full((3000, 1, 3, 3), 0.1))
    assert float(std) == 1


def test_digest_sees_values_shape_and_dtype():
    x = torch.arange(6, dtype=torch.uint8)
    changed = [x.flip(0), x.view(2, 3), x.to(torch.int8)]
    assert len({digest(t) for t in [x, *changed]}) == 4
    assert digest(x) == digest(x.clone())
    assert len(digest(x)) == 16
    assert digest(x.view(2, 3).T) == digest(x.view(2, 3).T.contiguous())


def test_a_limit_is_a_random_subset_that_grows():
    small, large = load("digits", limit_train=100), load("digits", limit_train=400)
    assert torch.equal(small.train_images, large.train_images[:100])
    assert len(small.train_labels.unique()) == 10
    assert not torch.equal(small.train_images, load("digits").train_images[:100])
    assert small.num_classes == 10
    assert len(load("digits", limit_val=10).val_labels) == 10
    assert not torch.equal(choose(100, 20, "limit"), torch.arange(20))


@pytest.mark.parametrize("limit", [0, -1, 1201])
def test_a_limit_out_of_reach_says_how_many_there_are(limit):
    with pytest.raises(DataError, match=f"limit_train={limit}; 1200 images are available: use 1 to 1200"):
        load("digits", limit_train=limit)


def test_image_size_resizes_and_keeps_the_dtype():
    data = load("digits", image_size=16, limit_train=20, limit_val=10)
    assert data.train_images.shape == (20, 1, 16, 16)
    assert data.train_images.dtype == torch.uint8
    assert int(data.train_images.max()) <= 16
    with pytest.raises(DataError, match="image_size=0; expected at least 1 pixel"):
        load("digits", image_size=0)


def test_to_square_crops_the_centre():
    images = torch.zeros(2, 3, 4, 10)
    images[..., 3:7] = 1
    assert torch.equal(to_square(images, 4), torch.ones(2, 3, 4, 4))
    assert to_square(images.transpose(2, 3), 2).shape == (2, 3, 2, 2)
    assert to_square(images, None) is images
    assert to_square(torch.zeros(1, 1, 3, 7, dtype=torch.uint8), 5).shape == (1, 1, 5, 5)


def test_too_much_memory_is_refused_before_it_is_taken(monkeypatch):
    monkeypatch.setattr(images_module, "MAX_BYTES", 1_000_000)
    assert load("digits").digest
    with pytest.raises(DataError, match=r"need 7,360,512 bytes.*at most 1,000,000: use a smaller image_size .--im"):
        load("digits", image_size=64)
    assert load("digits", image_size=64, limit_train=200, limit_val=44).train_images.shape[-1] == 64


def test_unknown_names():
    with pytest.raises(UnknownNameError, match=r"unknown dataset 'fashion_mnist'.*did you mean 'fashion-mnist'\?"):
        load("fashion_mnist")
    with pytest.raises(DataError, match="there is no folder"):
        load("no/such/folder")


def test_catalog_rows_are_complete():
    for name, row in DATASETS.items():
        assert row.name == name
        assert all((row.title, row.shape, row.source, row.licence, row.obtained))
    assert OWN


def test_default_data_dir(monkeypatch, tmp_path):
    monkeypatch.setenv("GROUPNORM_DATA_DIR", str(tmp_path / "chosen"))
    assert default_data_dir() == tmp_path / "chosen"
    monkeypatch.delenv("GROUPNORM_DATA_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_data_dir() == tmp_path / "groupnorm"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_data_dir() == tmp_path / ".cache" / "groupnorm"


def test_importing_is_light():
    code = "import sys; import groupnorm.lab.data.load; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"torchvision", "sklearn", "PIL"}.isdisjoint(modules)
