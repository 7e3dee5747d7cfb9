"""Folders of the user's own images."""

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from groupnorm.lab.data import DataError, load
from groupnorm.lab.data import images as images_module
from groupnorm.lab.data.images import decode, pixels


@pytest.fixture
def folder(tmp_path, jpeg):
    for split, count in (("train", 4), ("val", 2)):
        for value, name in ((50, "dark"), (200, "light")):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                (tmp_path / split / name / f"{i}.jpg").write_bytes(jpeg(value, 12, 16))
    (tmp_path / "train" / "dark" / "._0.jpg").write_bytes(b"litter")
    (tmp_path / "train" / "dark" / "notes.txt").write_text("no image")
    (tmp_path / "train" / ".cache").mkdir()
    return tmp_path


@pytest.mark.parametrize("prefix", ["folder:", ""])
def test_labels_are_the_sorted_folders(folder, prefix):
    data = load(f"{prefix}{folder}")
    assert data.train_images.shape == (8, 3, 12, 16)
    assert data.val_images.shape == (4, 3, 12, 16)
    assert data.classes == ("dark", "light")
    assert torch.equal(data.train_labels, (data.train_images[:, 0, 0, 0] > 100).long())
    assert data.train_labels.tolist() != sorted(data.train_labels.tolist())
    assert load(f"{prefix}{folder}").digest == data.digest


def test_relative_paths_and_test_in_place_of_val(folder, monkeypatch):
    (folder / "val").rename(folder / "test")
    monkeypatch.chdir(folder.parent)
    assert len(load(f"./{folder.name}", limit_train=3).train_labels) == 3


def test_images_of_several_sizes_need_an_image_size(folder, jpeg):
    (folder / "train" / "light" / "9.jpeg").write_bytes(jpeg(200, 20, 10))
    with pytest.raises(DataError, match="expected one size: set image_size"):
        load(str(folder))
    data = load(str(folder), image_size=8)
    assert data.train_images.shape == (9, 3, 8, 8)
    assert data.train_images.dtype == torch.uint8


def test_train_and_validation_must_agree(folder, jpeg):
    for path in (folder / "val").rglob("*.jpg"):
        path.write_bytes(jpeg(1, 8, 8))
    with pytest.raises(DataError, match=r"of shape \(3, 12, 16\), validation images .* of shape \(3, 8, 8\)"):
        load(str(folder))


def test_memory_is_checked_first(folder, monkeypatch):
    monkeypatch.setattr(images_module, "MAX_BYTES", 5000)
    with pytest.raises(DataError, match=r"12 images of shape \(3, 12, 16\) need 6,912 bytes"):
        load(str(folder))
    assert load(str(folder), limit_train=4).train_images.shape[0] == 4


def test_a_damaged_image_is_named(folder):
    path = folder / "train" / "dark" / "2.jpg"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"train/dark/2\.jpg is not a whole"):
        load(str(folder))
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"train/dark/2\.jpg is not a whole"):
        load(str(folder))


def test_a_folder_of_another_form_is_explained(folder, tmp_path):
    with pytest.raises(DataError, match="no such directory"):
        load("folder:no-such-folder")
    (folder / "val" / "unseen").mkdir()
    with pytest.raises(DataError, match=r"has the classes \['unseen'\], which .*train has not"):
        load(str(folder))
    (folder / "val" / "unseen").rmdir()
    (folder / "train" / "empty").mkdir()
    with pytest.raises(DataError, match=r"train/empty has no image; expected files that end in \.jpg"):
        load(str(folder))
    with pytest.raises(DataError, match=r"has no folder train \(found: \['dark', 'light'\]\)"):
        load(str(folder / "val"))
    (folder / "bare" / "train").mkdir(parents=True)
    (folder / "bare" / "val").mkdir()
    with pytest.raises(DataError, match="has no CLASS/IMAGE"):
        load(str(folder / "bare"))


@pytest.mark.parametrize(
    ("form", "mode"), [("PNG", "L"), ("PNG", "RGBA"), ("PNG", "P"), ("WEBP", "RGB"), ("JPEG", "L")]
)
def test_other_forms_become_three_channels(form, mode):
    file = BytesIO()
    Image.new(mode, (5, 7)).save(file, form)
    image = pixels(decode(file.getvalue(), "image"))
    assert (image.shape, image.dtype) == ((3, 7, 5), torch.uint8)


def test_sixteen_bits_are_scaled_to_eight():
    file = BytesIO()
    Image.fromarray(np.array([[0, 257, 65535]], dtype=np.uint16)).save(file, "PNG")
    assert pixels(decode(file.getvalue(), "image"))[0].tolist() == [[0, 1, 255]]
