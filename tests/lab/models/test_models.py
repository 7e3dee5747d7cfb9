"""The networks of `compare` with norms that contain their activation or need the convolution before them."""

import pytest
import torch
from torch import nn

from groupnorm.lab import models
from groupnorm.lab.models import MODELS
from groupnorm.nn import CrossIterationBatchNorm, FilterResponseNorm, WeightStandardization
from groupnorm.nn.weight_standardization import _standardization

SMALL = ["resnet-tiny", "resnet20", "resnet18", "vgg16", "vgg-small"]
NORMS = {"resnet-tiny": 12, "resnet20": 19, "resnet18": 20, "vgg16": 13, "vgg-small": 13}


def build(name, norm):
    return models.build(name, norm, torch.randn(2, 1, 32, 32), 10)


def count(model, kind):
    return sum(isinstance(module, kind) for module in model.modules())


@pytest.mark.parametrize("name", SMALL)
def test_weights_are_standardised_before_every_norm_and_nowhere_else(name):
    model = build(name, "ws+gn")
    assert count(model, WeightStandardization) == NORMS[name] == count(model, nn.GroupNorm)
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert not any(_standardization(layer) for layer in linear)


@pytest.mark.parametrize("name", SMALL)
def test_every_norm_that_needs_a_convolution_has_it(name):
    model = build(name, "cbn")
    norms = [module for module in model.modules() if isinstance(module, CrossIterationBatchNorm)]
    assert len(norms) == NORMS[name]
    assert len({id(norm._layer[0]) for norm in norms}) == len(norms)


@pytest.mark.parametrize(
    ("name", "relus", "thresholds"),
    [("resnet-tiny", 0, 5), ("resnet20", 0, 10), ("resnet18", 9, 9), ("vgg16", 2, 13), ("vgg-small", 0, 13)],
)
def test_a_norm_with_an_activation_takes_the_place_of_the_relu_and_comes_without_before_an_addition(
    name, relus, thresholds
):
    """torchvision's blocks keep a ReLU of their own, and VGG those of its linear layers."""
    model = build(name, "frn")
    active = [module for module in model.modules() if isinstance(module, FilterResponseNorm) and module.activation]
    assert len(active) == thresholds
    assert count(model, nn.ReLU) == relus
    assert count(build(name, "gn"), nn.ReLU) > relus or relus == 9


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("norm", ["gn", "frn", "bcn", "evonorm-s0"])
def test_the_last_norm_of_a_block_starts_at_zero(name, norm):
    model = build(name, norm)
    zeros = sum(p.dim() == 1 and not p.any() for key, p in model.named_parameters() if key.endswith("weight"))
    assert zeros == {"resnet-tiny": 4, "resnet20": 9, "resnet18": 8, "vgg16": 0, "vgg-small": 0}[name]


def test_the_classifier_of_a_resnet_starts_small():
    weight = build("resnet18", "gn")[1].fc.weight
    assert weight.std().item() == pytest.approx(0.01, rel=0.1)  # ten standard errors of 5,120 draws


def test_the_names_are_those_of_the_catalog():
    assert set(SMALL) <= set(MODELS)
