"""Folders of the user's own images."""

import os
import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from groupnorm.lab.data import DataError, load
from groupnorm.lab.data import images as images_module
from groupnorm.lab.data.image_index import list_splits
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


def test_broken_images_are_listed_at_once_with_those_of_validation(folder, jpeg):
    (folder / "train" / "dark" / "0.jpg").write_bytes(b"")
    (folder / "train" / "dark" / "3.jpg").write_bytes(b"P6 16 12 255 too short")
    (folder / "train" / "light" / "2.jpg").unlink()
    (folder / "train" / "light" / "2.jpg").symlink_to("moved-away")
    (folder / "train" / "light" / "9.jpg").symlink_to("9.jpg")
    (folder / "train" / "light" / "3.jpg").write_bytes(jpeg(9, 5, 5))
    (folder / "val" / "dark" / "1.jpg").write_text("<html>404</html>")
    with pytest.raises(DataError) as caught:
        load(str(folder))
    text = str(caught.value)
    for part in (
        "train/dark/0.jpg is not a whole image (its content is none of JPEG, PNG",
        "train/dark/3.jpg is not a whole image (image file is truncated",
        "train/light/2.jpg cannot be read (No such file or directory); replace or remove it",
        "train/light/9.jpg cannot be read (Too many levels of symbolic links); replace or remove it",
        "and 1 of 9 images differ from it; expected one size: set image_size (--image-size)",
        "val/dark/1.jpg is not a whole image (its content is none of",
    ):
        assert part in text
    assert len(text.splitlines()) == 6
    assert "0x" not in text, "the address of an object helps nobody"


def test_a_long_list_of_broken_images_ends(folder):
    for i in range(150):
        (folder / "train" / "dark" / f"{i}.png").write_bytes(b"")
    with pytest.raises(DataError, match="and 50 more") as caught:
        load(str(folder))
    assert len(str(caught.value).splitlines()) == 101


def test_a_folder_of_another_form_is_explained(folder, tmp_path):
    with pytest.raises(DataError, match=r"there is no folder .*no-such-folder; expected a folder with train/CLASS"):
        load("folder:no-such-folder")
    with pytest.raises(DataError, match=r"there is a file, not a folder, .*/0\.jpg"):
        load(f"{folder}/val/dark/0.jpg")
    (folder / "val" / "unseen").mkdir()
    with pytest.raises(
        DataError, match=r"has the classes 'unseen', which .*train has not; expected some of 'dark', 'l"
    ):
        load(str(folder))
    (folder / "val" / "unseen").rmdir()
    (folder / "train" / "empty").mkdir()
    (folder / "train" / "empty" / "0.gif").touch()
    with pytest.raises(
        DataError, match=r"no image in the folders 'empty' \(left out: .*1 \*\.gif.*files that end in \.jpg"
    ):
        load(str(folder))
    with pytest.raises(DataError, match=r"has no folder train \(found: 'dark', 'light'\)"):
        load(str(folder / "val"))
    for split in ("train", "val"):
        (folder / "bare" / split / "a").mkdir(parents=True)
    with pytest.raises(DataError, match="bare/train has no image in its folders; expected files that end in"):
        load(str(folder / "bare"))


def test_images_without_a_folder_for_each_class_are_explained(folder):
    for path in (folder / "train").rglob("?.jpg"):
        path.rename(folder / "train" / f"{path.parent.name}-{path.name}")
    for name in ("dark", "light"):
        shutil.rmtree(folder / "train" / name)
    with pytest.raises(DataError, match="train has no folders and 8 images; expected a folder for each class"):
        load(str(folder))


def test_one_class_is_refused_with_the_folders_that_are_a_level_too_low(folder):
    for split in ("train", "val"):
        (folder / split).rename(folder / "pets")
        (folder / split).mkdir()
        (folder / "pets").rename(folder / split / "pets")
    with pytest.raises(
        DataError, match=r"train has one class only, 'pets', .* are the classes \('dark', 'light'\), move"
    ):
        load(str(folder))
    shutil.rmtree(folder / "train" / "pets" / "light")
    (folder / "train" / "pets" / "dark").rename(folder / "train" / "dark")
    shutil.rmtree(folder / "train" / "pets")
    shutil.rmtree(folder / "val" / "pets")
    (folder / "val" / "dark").mkdir()
    with pytest.raises(DataError, match=r"one class only, 'dark', .*expected two folders or more: add a folder"):
        load(str(folder))


def test_a_limit_that_leaves_one_class_is_refused(folder):
    with pytest.raises(DataError, match=r"limit_train=1: the 1 images are of one class.*raise limit_train"):
        load(str(folder), limit_train=1)


def test_classes_that_validation_lacks_are_noted(folder):
    shutil.rmtree(folder / "val" / "light")
    assert "val has no image of 1 of the 2 classes" in load(str(folder)).note


def save(path, form=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 12), (9, 9, 9)).save(path, form)


def test_the_images_are_those_of_torchvision_but_for_hidden_ones(folder):
    """Which reads other formats, folders in folders, and links to files and folders."""
    from torchvision.datasets import ImageFolder

    shutil.rmtree(folder / "train" / ".cache")
    (folder / "train" / "dark" / "._0.jpg").unlink()
    for i, ending in enumerate(("bmp", "tif", "TIFF", "ppm", "pgm", "webp", "PNG", "jpeg")):
        save(folder / "train" / "light" / f"x{i}.{ending}", "PPM" if ending == "pgm" else None)
    save(folder / "train" / "light" / "a" / "b" / "deep.png")
    save(folder / "elsewhere" / "more.png")
    (folder / "train" / "dark" / "link").symlink_to("../../elsewhere")
    (folder / "train" / "dark" / "9.jpg").symlink_to("0.jpg")
    (folder / "train" / "grey").symlink_to("../elsewhere")
    theirs = ImageFolder(str(folder / "train"))
    classes, files, _, note = list_splits(folder)
    assert classes == tuple(theirs.classes)
    assert sorted((str(folder / name), label) for name, label in files) == sorted(theirs.samples)
    assert note == "left out: 1 *.txt; val has no image of 1 of the 3 classes"
    assert len(load(str(folder)).train_images) == len(theirs)


def test_what_is_left_out_is_counted(folder):
    dark = folder / "train" / "dark"
    save(dark / ".ipynb_checkpoints" / "0-checkpoint.png")
    save(folder / "val" / "light" / ".ipynb_checkpoints" / "1-checkpoint.png")
    save(folder / "train" / "stray.png")
    (dark / ".DS_Store").touch()
    for name in ("0.gif", "1.GIF", "noise"):
        (dark / name).touch()
    (dark / "up").symlink_to("..")
    os.mkfifo(dark / "pipe.jpg")
    data = load(str(folder))
    assert len(data.train_images) == 8
    assert set(data.note.removeprefix("left out: ").split(", ")) == {
        "2 .ipynb_checkpoints/", "1 .cache/", "2 *.gif", "1 *.txt", "1 file without an ending", "1 hidden image",
        "1 image beside the class folders", "1 link to a folder above", "1 pipe or device",
    }  # fmt: skip


def test_links_between_folders_end(folder):
    for here, there in (("dark", "light"), ("light", "dark")):
        (folder / "train" / here / "other").symlink_to(f"../{there}")
    (folder / "train" / "dark" / "loop").symlink_to("loop")
    data = load(str(folder))
    assert len(data.train_images) == 16
    assert "2 links to a folder above" in data.note


def test_a_folder_that_cannot_be_listed_is_named(folder, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    (folder / "train" / "dark" / "locked").mkdir()
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(
        DataError, match=r"dark/locked cannot be listed \(Permission denied\); expected a folder that may"
    ):
        load(str(folder))


def test_one_name_spelt_in_two_ways_of_unicode_is_one_class(folder):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    (folder / "train" / "dark").rename(folder / "train" / composed)
    (folder / "val" / "dark").rename(folder / "val" / decomposed)
    data = load(str(folder))
    assert data.classes == (composed, "light")
    assert data.val_labels.bincount().tolist() == [2, 2]
    (folder / "train" / decomposed).mkdir()
    with pytest.raises(
        DataError, match=r"two folders 'caf\u00e9', which differ only.*'cafe\\u0301'.*expected one: move"
    ):
        load(str(folder))


def test_names_that_are_not_utf8_are_read(folder):
    dark = os.fsencode(folder / "train" / "dark")
    os.rename(dark + b"/0.jpg", dark + b"/caf\xe9.jpg")
    os.rename(dark, os.fsencode(folder / "train") + b"/caf\xe9")
    shutil.rmtree(folder / "val" / "dark")
    assert len(load(str(folder)).train_images) == 8


@pytest.mark.parametrize(
    "name",
    [r"C:\data\pets", "C:/data/pets", "D:/pets", "pets/2024:v2", r"data\pets", "./pets", "~/no-such", "~unknown"],
)
def test_a_path_that_does_not_exist_is_taken_for_no_module(name):
    with pytest.raises(DataError, match=r"there is no folder .*; expected a folder with train/CLASS"):
        load(name)


def test_a_folder_named_like_the_home_of_nobody_is_read(folder, monkeypatch):
    folder.rename(folder.parent / "~unknown")
    monkeypatch.chdir(folder.parent)
    assert len(load("~unknown").train_images) == 8


@pytest.mark.parametrize("name", ["", "folder:"])
def test_no_name_is_not_the_current_folder(folder, monkeypatch, name):
    monkeypatch.chdir(folder)
    with pytest.raises(DataError, match="has no name; expected one of digits, "):
        load(name)
    assert len(load(".").train_images) == 8


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


def test_more_pixels_than_pillow_reads_are_no_damage(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 90)
    with pytest.raises(DataError, match=r"0\.jpg has more pixels than the 180 that Pillow reads; make it smaller, or"):
        load(str(folder), image_size=4)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.array([[0.0, 0.5]], dtype=np.float32), "it holds floating-point numbers, where 8 or 16 bits are expected"),
        (np.array([[0, 70000]], dtype=np.int32), "its values are 0 to 70000, where 0 to 65535 are expected"),
        (np.array([[-1, 7]], dtype=np.int32), "its values are -1 to 7"),
    ],
)
def test_values_that_eight_bits_would_lose_are_refused(values, reason):
    file = BytesIO()
    Image.fromarray(values).save(file, "TIFF")
    with pytest.raises(DataError, match=reason):
        decode(file.getvalue(), "image")


def test_a_format_under_the_ending_of_another_is_read(jpeg):
    assert decode(jpeg(7, form="GIF"), "cat.jpg").size == (32, 32)
