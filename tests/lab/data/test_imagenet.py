"""ImageNet from a disk: a made-up one of a few photographs of different sizes."""

import os
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as theirs

from groupnorm.lab.data import DataError, ImageFiles, load
from groupnorm.lab.data import files as files_module
from groupnorm.lab.data import images as images_module
from groupnorm.lab.data.augmentation import augmentation, flip_jitter_light, random_area

CLASSES = ("n01440764", "n01443537", "n01484850")
SIZES = ((90, 60), (61, 121), (64, 64))


def write(path, size, seed=0, form="JPEG", mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).convert(mode).save(path, form)


@pytest.fixture
def imagenet(tmp_path):
    """6 + 3 images of three classes, below ``tmp_path``."""
    for label, name in enumerate(CLASSES):
        for i in range(2):
            write(tmp_path / "imagenet" / "train" / name / f"{name}_{i}.JPEG", SIZES[(label + i) % 3], 10 * label + i)
        write(tmp_path / "imagenet" / "val" / name / f"ILSVRC2012_val_0000000{label}.JPEG", SIZES[label], 50 + label)
    return tmp_path


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_images_stay_on_disk_and_are_labelled_by_folder(imagenet):
    data = load("imagenet", imagenet)
    assert isinstance(data.train_images, ImageFiles)
    assert data.train_images.shape == (6, 3, 224, 224)
    assert data.val_images.shape == (3, 3, 224, 224)
    assert (len(data.train_images), data.num_classes, data.classes) == (6, 3, CLASSES)
    names = [name.split("/")[1] for name in data.train_images.names]
    assert [CLASSES[label] for label in data.train_labels] == names
    assert names != sorted(names)
    assert "3 of 1,000 classes, 6 of 1,281,167 training and 3 of 50,000 validation images" in data.note
    assert "not comparable" in data.note


def test_channels_are_standardised_as_published(imagenet):
    data = load("imagenet", imagenet)
    mean = 255 * torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = 255 * torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    torch.testing.assert_close(data.batch(mean + std), torch.ones(1, 3, 1, 1))


@pytest.mark.parametrize(("image_size", "side", "shorter"), [(None, 224, 256), (56, 56, 64), (32, 32, 37)])
def test_the_validation_view_is_that_of_torchvision(imagenet, image_size, side, shorter):
    data = load("imagenet", imagenet, image_size=image_size)
    result = data.val_images[torch.arange(3)]
    assert (result.dtype, result.shape) == (torch.uint8, (3, 3, side, side))
    for image, name in zip(result, data.val_images.names, strict=True):
        whole = Image.open(imagenet / "imagenet" / name).convert("RGB")
        expected = theirs.pil_to_tensor(theirs.center_crop(theirs.resize(whole, shorter), side))
        assert torch.equal(image, expected)


def test_the_training_view_is_the_random_area_then_the_colours(imagenet):
    data = load("imagenet", imagenet, image_size=32)
    chosen = torch.tensor([4, 0, 3])
    (result,) = augmentation("imagenet").batches(data.train_images, [chosen], seeded())
    numbers = torch.rand(3, 30, generator=seeded(), dtype=torch.float64)
    parts = []
    for index, row in zip(chosen.tolist(), numbers.tolist(), strict=True):
        whole = Image.open(imagenet / "imagenet" / data.train_images.names[index]).convert("RGB")
        left, top, right, bottom = random_area(row, whole.height, whole.width)
        part = theirs.resized_crop(whole, top, left, bottom - top, right - left, [32, 32])
        parts.append(theirs.pil_to_tensor(part))
    assert torch.equal(result, flip_jitter_light(torch.stack(parts), numbers))


@pytest.mark.parametrize("name", ["none", "cifar", "imagenet"])
def test_an_epoch_repeats_bit_for_bit_whatever_the_number_of_threads(imagenet, monkeypatch, name):
    images = load("imagenet", imagenet, image_size=24).train_images
    order = torch.tensor([5, 1, 0, 3, 2, 4]).split(2)
    epochs = []
    for threads in (1, 7):
        monkeypatch.setattr(files_module, "THREADS", threads)
        epochs.append(torch.cat(list(augmentation(name).batches(images, order, seeded(3)))))
    assert torch.equal(*epochs)
    other = torch.cat(list(augmentation(name).batches(images, order, seeded(4))))
    assert torch.equal(epochs[0], other) == (name == "none")


def test_indices_slices_and_parts_give_the_same(imagenet):
    images = load("imagenet", imagenet, image_size=16).train_images
    whole = images[torch.arange(6)]
    assert torch.equal(images[:2], whole[:2])
    assert torch.equal(images[torch.tensor([3, 1])], whole[[3, 1]])
    parts = list(images.split(4))
    assert [len(part) for part in parts] == [4, 2]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(next(augmentation("none").batches(images, [torch.arange(6)], seeded())), whole)


def test_limits_choose_as_for_other_datasets(imagenet):
    small = load("imagenet", imagenet, image_size=16, limit_train=2, limit_val=1)
    large = load("imagenet", imagenet, image_size=16, limit_train=4)
    assert (len(small.train_images), len(small.val_labels)) == (2, 1)
    assert small.train_images.names == large.train_images.names[:2]
    assert torch.equal(small.train_labels, large.train_labels[:2])
    with pytest.raises(DataError, match="limit_train=7; 6 images are available"):
        load("imagenet", imagenet, limit_train=7)


def test_the_next_batches_are_read_while_one_is_used(imagenet, monkeypatch):
    read = []
    read_image = files_module.read_image
    monkeypatch.setattr(files_module, "read_image", lambda path: read.append(path) or read_image(path))
    monkeypatch.setattr(files_module, "AHEAD", 2)
    parts = load("imagenet", imagenet, image_size=16).train_images.split(1)
    assert read == []
    next(parts)
    deadline = time.monotonic() + 10
    while len(read) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)  # for a fifth, were one asked for
    assert len(read) == 4  # the one in use, and the first number of batches that is more than AHEAD
    parts.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_the_digest_changes_with_names_sizes_and_sides(imagenet):
    first = load("imagenet", imagenet).digest
    path = imagenet / "imagenet" / "train" / CLASSES[1] / f"{CLASSES[1]}_0.JPEG"
    os.utime(path, (0, 0))
    assert load("imagenet", imagenet).digest == first
    digests = {first, load("imagenet", imagenet, image_size=32).digest, load("imagenet", imagenet, limit_val=2).digest}
    path.write_bytes(path.read_bytes() + b"\0")
    digests.add(load("imagenet", imagenet).digest)
    path.rename(path.with_stem(path.stem + "0"))  # which keeps the order
    digests.add(load("imagenet", imagenet).digest)
    assert len(digests) == 5


@pytest.mark.parametrize("name", ["ILSVRC2012", "ImageNet"])
def test_other_names_of_the_folder_are_known(imagenet, name):
    (imagenet / "imagenet").rename(imagenet / name)
    assert len(load("imagenet", imagenet).train_images) == 6


@pytest.mark.parametrize(("form", "mode"), [("PNG", "RGB"), ("JPEG", "CMYK"), ("JPEG", "L")])
def test_the_odd_files_of_imagenet_are_read(imagenet, form, mode):
    """One is a PNG by the name of JPEG, twenty-two are CMYK, some are grey."""
    path = imagenet / "imagenet" / "val" / CLASSES[0] / "ILSVRC2012_val_00000000.JPEG"
    write(path, (40, 50), 1, form, mode)
    images = load("imagenet", imagenet, image_size=16, limit_val=3).val_images
    assert images[torch.arange(3)].shape == (3, 3, 16, 16)


@pytest.mark.parametrize("part", [0, 0.5, 0.98])
def test_a_photograph_cut_short_is_named_when_it_is_read(imagenet, part):
    path = imagenet / "imagenet" / "train" / CLASSES[2] / f"{CLASSES[2]}_1.JPEG"
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data))])
    images = load("imagenet", imagenet, image_size=16).train_images
    with pytest.raises(DataError, match=r"n01484850_1\.JPEG is not a whole image .*; replace or remove it"):
        list(images.split(2))


def test_all_that_is_broken_in_a_batch_is_named(imagenet):
    names = load("imagenet", imagenet).train_images.names[:2]
    (imagenet / "imagenet" / names[0]).write_bytes(b"")
    (imagenet / "imagenet" / names[1]).write_text("<html>")
    with pytest.raises(DataError) as caught:
        next(load("imagenet", imagenet, image_size=16).train_images.split(3))
    assert all(f"{name} is not a whole image (its content is none of" in str(caught.value) for name in names)


def test_what_is_left_out_is_noted_beside_what_is_missing(imagenet):
    (imagenet / "imagenet" / "train" / CLASSES[0] / "synset.txt").touch()
    assert load("imagenet", imagenet).note.endswith("not comparable with published ones; left out: 1 *.txt")


def test_a_file_that_is_gone_is_named(imagenet):
    path = imagenet / "imagenet" / "train" / CLASSES[0] / "gone.JPEG"
    path.symlink_to("nowhere")
    with pytest.raises(
        DataError, match=r"gone\.JPEG cannot be read \(No such file or directory\); replace or remove it"
    ):
        load("imagenet", imagenet)


def test_where_it_comes_from_is_said_when_it_is_missing(tmp_path):
    with pytest.raises(DataError) as caught:
        load("imagenet", tmp_path)
    for part in (f"{tmp_path}/imagenet", "ILSVRC2012", "https://image-net.org", "imagenet/val/n01440764/*.JPEG"):
        assert part in str(caught.value)
    assert "--data-dir" in str(caught.value)
    (tmp_path / "imagenet" / "train").mkdir(parents=True)
    with pytest.raises(DataError, match=r"imagenet has no folder val"):
        load("imagenet", tmp_path)


def test_how_to_sort_a_flat_validation_folder_is_said(imagenet):
    val = imagenet / "imagenet" / "val"
    for path in list(val.rglob("*.JPEG")):
        path.rename(val / path.name)
    for name in CLASSES:
        (val / name).rmdir()
    with pytest.raises(DataError, match=r"val holds 3 images and no folders; expected .*val/n01440764: .*valprep\.sh"):
        load("imagenet", imagenet)


def test_images_on_disk_do_not_count_as_memory(imagenet, monkeypatch):
    monkeypatch.setattr(images_module, "MAX_BYTES", 10)
    assert len(load("imagenet", imagenet).train_images) == 6
