"""The attack: against the closed form on a linear network, and that it stays where it may."""

import torch
from torch import Generator, nn

from groupnorm.lab.regimes.pgd import pgd


def images_and_labels(n=8, channels=2):
    generator = Generator().manual_seed(0)
    images = (255 * torch.rand(n, channels, 3, 3, generator=generator)).round()
    images[0] = 0.0  # black and white leave room to one side alone
    images[1] = 255.0
    return images, torch.randint(0, 2, (n,), generator=generator)


def linear(channels=2):
    """Two classes, behind a standardisation with a different standard deviation in each channel."""
    weights = torch.randn(2, channels * 9, generator=Generator().manual_seed(1)) / 10
    mean, std = torch.tensor([100.0, 120.0])[:, None, None], torch.tensor([20.0, 70.0])[:, None, None]
    return weights, lambda images: ((images - mean) / std).flatten(1) @ weights.T


def attack(logits, images, labels, **changes):
    settings = {"radius": 8.0, "steps": 10, "step_size": 2.0, "white": 255.0, "generator": Generator().manual_seed(2)}
    return pgd(logits, images, labels, **{**settings, **changes})


def test_on_a_linear_network_it_finds_the_corner_that_the_closed_form_names():
    images, labels = images_and_labels()
    weights, logits = linear()
    away = (weights[1 - labels] - weights[labels]).view_as(images)  # from the true class to the other
    expected = (images + 8 * away.sign()).clamp(0, 255)
    torch.testing.assert_close(attack(logits, images, labels), expected)


def test_it_stays_within_the_radius_and_between_black_and_white_with_any_step():
    images, labels = images_and_labels()
    network = nn.Sequential(nn.Flatten(), nn.Linear(18, 30), nn.Tanh(), nn.Linear(30, 2))
    for steps in (0, 1, 7):
        changed = attack(network, images, labels, steps=steps, step_size=50.0)
        assert (changed - images).abs().max() <= 8 + 1e-4
        assert changed.min() >= 0
        assert changed.max() <= 255


def test_it_starts_at_random_and_repeats_with_its_generator():
    images, labels = images_and_labels()
    _, logits = linear()
    first = attack(logits, images, labels, steps=0)
    assert (first - images).std() > 2
    assert torch.equal(first, attack(logits, images, labels, steps=0))
    assert not torch.equal(first, attack(logits, images, labels, steps=0, generator=Generator().manual_seed(3)))


def test_parameters_and_the_given_images_get_no_gradient():
    images, labels = images_and_labels()
    network = nn.Sequential(nn.Flatten(), nn.Linear(18, 2))
    before = images.clone()
    changed = attack(network, images, labels)
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(images, before)
    assert not changed.requires_grad
