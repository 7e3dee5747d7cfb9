"""A network whose factory ignores norm_layer, in whole or in part, is refused before anything trains."""

import copy
import sys

import pytest
import torch
from torch import nn

import groupnorm.nn
from groupnorm.lab import models
from groupnorm.lab.models.marking import ignored, marking
from groupnorm.lab.sweeps.configuration import ConfigurationError, plan
from groupnorm.nn import norm_layer, replacements

X = torch.randn(2, 3, 32, 32)


def network(*norms):
    """A convolution before each norm, and a head."""
    layers = [layer for norm in norms for layer in (nn.LazyConv2d(8, 3, padding=1), norm, nn.ReLU())]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(10))


def made(spec):
    return marking(norm_layer(spec))


@pytest.mark.parametrize("norm", ["none", "syncbn", *replacements()])
def test_a_network_of_this_package_passes_with_every_norm(norm):
    assert ignored(models.build("resnet-tiny", norm, X, 10), norm) == ""


@pytest.mark.parametrize("name", ["resnet20", "resnet18", "vgg-small", "vgg16"])
def test_each_family_of_networks_passes(name):
    assert ignored(models.build(name, "gn", X, 10), "gn") == ""


@pytest.mark.parametrize("norm", ["gn", "ln", "ws+gn", "brn", "ghost:4", "frn", "ws+bn", "syncbn"])
def test_batch_norms_of_its_own_are_named(norm):
    ignoring = network(nn.BatchNorm2d(8), nn.BatchNorm2d(8))
    assert ignored(ignoring, norm) == (
        "has no norm that norm_layer made and still has 2 BatchNorm2d of its own (1, 4); expected factory(norm_layer) "
        "to call norm_layer(num_channels) for every norm"
    )
    partly = network(made(norm)(8), nn.BatchNorm2d(8), made(norm)(8))
    assert ignored(partly, norm).startswith("still has 1 BatchNorm2d of its own (4); expected")


def test_a_norm_that_is_no_batch_norm_does_not_stand_for_the_one_asked_for():
    assert ignored(network(nn.GroupNorm(2, 8)), "gn").startswith("has no norm that norm_layer made; expected")
    assert ignored(network(nn.Identity()), "bn").startswith("has no norm that norm_layer made; expected")


def test_without_a_norm_a_network_is_what_none_asks_for_and_a_batch_norm_is_not():
    assert ignored(network(nn.Identity()), "none") == ""
    assert "still has 1 BatchNorm2d" in ignored(network(nn.BatchNorm2d(8)), "none")


def test_a_batch_norm_is_what_bn_asks_for_and_one_of_another_kind_is_not():
    assert ignored(network(nn.BatchNorm2d(8)), "bn") == ""
    assert ignored(network(made("bn")(8), nn.SyncBatchNorm(8)), "bn") == ""
    assert "1 GhostBatchNorm" in ignored(network(made("bn")(8), groupnorm.nn.GhostBatchNorm(8, 4)), "bn")


@pytest.mark.parametrize("own", [nn.LayerNorm(8), nn.GroupNorm(2, 8), nn.InstanceNorm2d(8), nn.LocalResponseNorm(2)])
def test_norms_of_its_own_that_do_not_depend_on_the_batch_are_allowed(own):
    assert ignored(network(made("gn")(8), own), "gn") == ""


def test_a_copy_of_a_norm_and_what_lies_within_one_count_as_the_factorys():
    block = network(made("bcn")(8))
    assert ignored(nn.Sequential(*(copy.deepcopy(block[:3]) for _ in range(3))), "bcn") == ""
    within = made("gn")(8)
    within.inner = nn.BatchNorm2d(8)
    assert ignored(network(within), "gn") == ""


def test_timm_is_still_refused_a_norm_without_its_activation():
    timm = pytest.importorskip("timm")
    with pytest.raises(ValueError, match="expects norm_layer to apply the activation too"):
        timm.create_model("efficientnet_b0", norm_layer=made("gn"))


OWN = """
from torch import nn

def whole(norm_layer):
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(288, 10))

def partly(norm_layer):
    return nn.Sequential(nn.Conv2d(1, 8, 3), norm_layer(8), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(288, 10))
"""


@pytest.mark.parametrize(("name", "how"), [("whole", "has no norm that norm_layer made and "), ("partly", "")])
def test_it_is_a_problem_of_the_configuration(tmp_path, monkeypatch, name, how):
    (tmp_path / "ignoring.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "ignoring", raising=False)
    with pytest.raises(ConfigurationError) as caught:
        plan(model=f"ignoring:{name}", norms="bn,gn", batch_sizes=8, limit_train=64, limit_val=20)
    (problem,) = caught.value.problems
    told = f"model: 'ignoring:{name}' ignores norm 'gn': the network {how}still has 1 BatchNorm2d of its own"
    assert problem.startswith(told)
