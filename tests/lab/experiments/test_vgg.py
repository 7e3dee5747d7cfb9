"""The responses of the last convolution: what the percentiles are taken of."""

import numpy as np
import torch
from torch import nn

from groupnorm.lab.common.trial import Cell
from groupnorm.lab.data import load
from groupnorm.lab.experiments.vgg import PERCENTILES, VggTraining, last_responses
from groupnorm.lab.models.small_vgg import vgg_small


def test_responses_are_those_before_the_norm_even_where_the_relu_works_in_place():
    last = nn.Conv2d(4, 6, 3)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), last, nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(6 * 4 * 4, 2))
    inputs = torch.randn(5, 3, 8, 8)
    expected = last(model[0](inputs))
    assert (expected < 0).any()
    torch.testing.assert_close(last_responses(model, inputs), expected)
    assert not last._forward_hooks


def test_percentiles_are_those_of_numpy_over_the_validation_images_in_evaluation_mode():
    digits = load("digits", limit_train=64, limit_val=40)
    cell = Cell(
        dataset="digits", data_digest=digits.digest, model="vgg-small", norm="bn", batch_size=32,
        normalization_batch=None, seed=0, epochs=1, learning_rate=0.02, momentum=0.9, weight_decay=0.0, limit_train=64,
        limit_val=40, image_size=None, device="cpu", precision="fp32", threads=1,
    )  # fmt: skip
    training = VggTraining(cell, digits)
    record = training.epoch()
    training.model.eval()
    responses = last_responses(training.model, digits.batch(digits.val_images))
    assert len(responses) == 40
    expected = np.percentile(responses.numpy(), PERCENTILES)
    np.testing.assert_allclose([record[f"p{q}"] for q in PERCENTILES], expected, rtol=1e-4, atol=1e-6)


def test_the_small_vgg_is_vgg16_with_an_eighth_of_its_channels():
    torchvision = __import__("torchvision.models.vgg", fromlist=["cfgs"])
    model = vgg_small(lambda channels, **options: nn.BatchNorm2d(channels), 1, 10)
    widths = [module.out_channels if isinstance(module, nn.Conv2d) else "M" for module in model
              if isinstance(module, nn.Conv2d | nn.MaxPool2d)]  # fmt: skip
    assert widths == [width if width == "M" else width // 8 for width in torchvision.cfgs["D"]]
    assert model(torch.randn(2, 1, 28, 28)).shape == model(torch.randn(2, 1, 8, 8)).shape == (2, 10)
