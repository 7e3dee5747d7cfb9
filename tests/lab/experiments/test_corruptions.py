"""Corruptions of test images: their definition, and that they can be repeated."""

import pytest
import torch
from torch import Generator

from groupnorm.errors import UnknownNameError
from groupnorm.lab.experiments.corruptions import CORRUPTIONS, SEVERITIES, corrupt, disk, reduce_contrast


def pictures(size=24):
    return torch.rand(3, 2, size, size, generator=Generator().manual_seed(0))


def seeded():
    return Generator().manual_seed(1)


def test_contrast_keeps_the_mean_of_each_channel_of_each_image_and_scales_its_deviation():
    images = pictures()
    changed = reduce_contrast(images, 0.3)
    torch.testing.assert_close(changed.mean((2, 3)), images.mean((2, 3)))
    torch.testing.assert_close(changed.std((2, 3)), 0.3 * images.std((2, 3)))


def test_noise_has_the_standard_deviation_of_its_severity_and_repeats_with_its_generator():
    grey = torch.full((4, 3, 64, 64), 0.5)
    noisy = corrupt(grey, "noise", 1, "imagenet-c", seeded())
    assert (noisy - grey).std().item() == pytest.approx(0.08, rel=0.02)
    assert torch.equal(noisy, corrupt(grey, "noise", 1, "imagenet-c", seeded()))


@pytest.mark.parametrize(("radius", "softness"), [(0.3, 0.4), (1.5, 0.1), (3, 0.1), (8, 0.5), (10, 0.5)])
def test_the_disk_of_the_blur_has_sum_one_is_symmetric_and_no_wider_than_it_must_be(radius, softness):
    kernel = disk(radius, softness)
    assert kernel.sum().item() == pytest.approx(1, abs=0.02)  # mirrored where it touches its border
    torch.testing.assert_close(kernel, kernel.flip(0))
    torch.testing.assert_close(kernel, kernel.T)
    assert len(kernel) <= 2 * (int(radius) + 2) + 1


def test_a_disk_without_softness_is_the_average_of_the_pixels_within_its_radius():
    images = pictures()
    changed = corrupt(images, "blur", 1, "imagenet-c", seeded())  # radius 3, hardly softened
    near = [(dy, dx) for dy in range(-3, 4) for dx in range(-3, 4) if dy * dy + dx * dx <= 9]
    expected = torch.stack([images[:, :, 12 + dy, 10 + dx] for dy, dx in near]).mean(0)
    torch.testing.assert_close(changed[:, :, 12, 10], expected)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("kind", SEVERITIES)
def test_corruptions_grow_with_their_severity_and_stay_between_black_and_white(name, kind):
    images = pictures(32)
    changed = [corrupt(images, name, severity, kind, seeded()) for severity in range(1, 6)]
    distances = [(image - images).square().mean().item() for image in changed]
    assert distances == sorted(distances)
    assert distances[0] > 0
    assert all(image.min() >= 0 and image.max() <= 1 for image in changed)


def test_an_unknown_corruption_or_kind_is_named_with_the_known_ones():
    with pytest.raises(UnknownNameError, match="'fog'; expected one of: contrast, noise, blur"):
        corrupt(pictures(), "fog", 1, "imagenet-c", seeded())
    with pytest.raises(UnknownNameError, match="'coco-c'; expected one of: imagenet-c, cifar10-c"):
        corrupt(pictures(), "blur", 1, "coco-c", seeded())
