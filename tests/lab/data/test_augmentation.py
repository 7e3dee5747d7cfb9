"""Augmentation: exact against slow references, with the statistics that the papers state, and repeatable."""

from functools import partial

import numpy as np
import pytest
import torch

from groupnorm.errors import ArgumentError, UnknownNameError
from groupnorm.lab.data.augmentation import AUGMENTATIONS, augmentation, flip_jitter_light, pad_crop_flip, random_area

EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])
EIGENVECTORS = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
NEUTRAL = torch.tensor([0.5] * 22 + [0.9, 0.0] + [0.5] * 6, dtype=torch.float64)
"""No mirror, factors of one, no shift."""


def uniform(*shape):
    return torch.rand(shape, dtype=torch.float64)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", [(40, 3, 32, 32), (40, 1, 5, 7)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_pad_crop_flip_is_what_a_loop_does(shape, dtype):
    images, numbers = torch.randint(0, 256, shape).to(dtype), uniform(shape[0], 3)
    expected = []
    for image, (down, right, mirror) in zip(images.numpy(), numbers.tolist(), strict=True):
        padded = np.pad(image, ((0, 0), (4, 4), (4, 4)))
        top, left = int(9 * down), int(9 * right)
        part = padded[:, top : top + shape[2], left : left + shape[3]]
        expected.append(part[:, :, ::-1] if mirror < 0.5 else part)
    result = pad_crop_flip(images, numbers)
    assert result.dtype == dtype
    assert torch.equal(result, torch.from_numpy(np.stack(expected)))


def test_pad_crop_flip_visits_all_81_places_and_mirrors_every_other_image():
    marked = torch.zeros(8100, 1, 9, 9)
    marked[:, :, 4, 4], marked[:, :, 4, 3] = 1, 2  # the middle, which no crop loses, and what lies left of it
    result = augmentation("cifar").apply(marked, seeded())[:, 0]
    places = (result == 1).flatten(1).float().argmax(1)
    assert (places.bincount(minlength=81) - 100).abs().max() < 50  # 5 standard deviations
    inner = places % 9 > 0
    left = result.flatten(1).gather(1, (places - 1).clamp(min=0).unsqueeze(1))[:, 0] == 2
    assert abs(left[inner].double().mean() - 0.5) < 0.03  # unmirrored


def test_random_area_keeps_to_the_ranges_of_the_paper():
    height, width = 375, 500
    boxes = np.array([random_area(row, height, width) for row in uniform(4000, 22).tolist()])
    left, top, right, bottom = boxes.T
    w, h = right - left, bottom - top
    assert left.min() == top.min() == 0
    assert (right.max(), bottom.max()) == (width, height)
    area, ratio = w * h / (height * width), w / h
    assert 0.079 < area.min() < 0.09
    assert 0.95 < area.max() <= 1
    assert 0.745 < ratio.min() < 0.76
    assert 1.31 < ratio.max() < 1.343
    assert abs(np.mean(ratio < 1) - 0.5) < 0.1  # fewer high ones fit
    small = area < 0.5  # such a crop always fits, so that the area is uniform there
    assert abs(area[small].mean() - 0.29) < 0.01


def test_random_area_reaches_every_edge():
    middle = [0.5] * 20  # 54% of the area, square
    assert random_area([*middle, 0.0, 0.0], 100, 100) == (0, 0, 73, 73)
    assert random_area([*middle, 0.999, 0.0], 100, 100) == (0, 27, 73, 100)
    assert random_area([*middle, 0.0, 0.999], 100, 100) == (27, 0, 100, 73)


def test_random_area_without_a_fit_is_the_largest_square_in_the_centre():
    for row in uniform(50, 22).tolist():
        assert random_area(row, 20, 1001) == (490, 0, 510, 20)


def slow_jitter(image, numbers):
    """transforms.lua for one image [3, H, W] in 0..1, float64."""
    mirror, order, *rest = numbers[22:]
    if mirror < 0.5:
        image = image[:, :, ::-1]
    orders = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    for kind in orders[int(6 * order)]:
        grey = 0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]
        other = (np.zeros_like(grey), np.full_like(grey, grey.mean()), grey)[kind]
        factor = 0.6 + 0.8 * rest[kind]
        image = factor * image + (1 - factor) * other
    shifts = 0.1 * torch.special.ndtri(torch.tensor(rest[3:], dtype=torch.float64)).numpy()
    return image + (EIGENVECTORS * shifts * EIGENVALUES).sum(1)[:, None, None]


def test_flip_jitter_light_is_what_a_loop_does():
    images, numbers = torch.randint(0, 256, (60, 3, 6, 5), dtype=torch.uint8), uniform(60, 30)
    pairs = zip(images.double().numpy() / 255, numbers.tolist(), strict=True)
    expected = torch.from_numpy(np.stack([255 * slow_jitter(image, row) for image, row in pairs]))
    result = flip_jitter_light(images, numbers)
    assert result.dtype == torch.float32
    assert result.max() > 255  # nothing is cut off
    # Some twenty roundings of values up to 255 * 1.4 ** 2 = 500, each of 2 ** -24 of it.
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=20 * 500 * 2**-24)


def test_neutral_numbers_change_nothing():
    images = torch.randint(0, 256, (4, 3, 6, 5), dtype=torch.uint8)
    assert torch.equal(flip_jitter_light(images, NEUTRAL.expand(4, 30)), images.float())


def test_lighting_has_the_covariance_of_imagenets_colours():
    numbers = NEUTRAL.repeat(20_000, 1)
    numbers[:, 27:] = uniform(20_000, 3)
    shift = flip_jitter_light(torch.full((20_000, 3, 1, 1), 100), numbers)[:, :, 0, 0] - 100
    expected = (25.5 * EIGENVECTORS * EIGENVALUES) @ (25.5 * EIGENVECTORS * EIGENVALUES).T
    assert shift.mean(0).abs().max() < 0.12  # the standard error is 0.023
    np.testing.assert_allclose(np.cov(shift.T.numpy()), expected, rtol=0.05)


def test_a_number_of_zero_is_finite():
    assert flip_jitter_light(torch.zeros(1, 3, 2, 2), torch.zeros(1, 30, dtype=torch.float64)).isfinite().all()


def test_imagenet_cuts_images_in_memory_to_their_own_size():
    ramp = torch.arange(64, dtype=torch.uint8).view(1, 1, 1, 64).expand(1, 3, 48, 64) * 4
    cut = partial(augmentation("imagenet")._cut, ramp)
    rows = uniform(30, 30)
    for row in rows:
        left, _, right, _ = random_area(row.tolist(), 48, 64)
        result = cut(row.unsqueeze(0))
        assert result.shape == ramp.shape
        # One column in from the edge, bilinear interpolation of a ramp is the ramp.
        at = left + (torch.arange(64) + 0.5) * (right - left) / 64 - 0.5
        inner = (at > left + 1) & (at < right - 2)
        assert ((result[0, 0, 5] - 4 * at)[inner].abs() <= 1).all()


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_the_seed_alone_decides(name):
    images = torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8)
    row = augmentation(name)
    first = row.apply(images, seeded())
    assert first.shape == images.shape
    assert torch.equal(first, row.apply(images, seeded()))
    parts = list(row.batches(images, torch.arange(20).split(7), seeded()))
    torch.testing.assert_close(torch.cat(parts), first)
    assert torch.equal(first, row.apply(images, seeded(1))) == (name == "none")


def test_none_returns_the_images_and_takes_no_numbers():
    images, generator = torch.rand(5, 2, 3, 3), seeded()
    assert torch.equal(augmentation("none").apply(images, generator), images)
    assert torch.equal(generator.get_state(), seeded().get_state())


def test_unknown_names_and_unfit_images_are_explained():
    with pytest.raises(UnknownNameError, match=r"'imagnet'; .*: none, cifar, imagenet, .* 'imagenet'\?"):
        augmentation("imagnet")
    for images in (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.zeros(2, 3, 8, 8)):
        with pytest.raises(ArgumentError, match=r"augment='imagenet' changes colours.*use augment='cifar' or 'none'"):
            augmentation("imagenet").apply(images, seeded())
        assert augmentation("cifar").apply(images, seeded()).shape == images.shape
