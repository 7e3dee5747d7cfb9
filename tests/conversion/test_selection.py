"""What ``where=`` and ``groups=`` take, and that a pattern fits something."""

import re

import numpy as np
import pytest
import torch
from torch import nn

import groupnorm
from groupnorm.errors import ArgumentError, ConversionError


def network():
    return nn.ModuleDict({"layer1": nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)), "bn": nn.BatchNorm2d(16)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"where": nn.ReLU()}, r"where=ReLU\(\); expected a glob"),
        ({"where": ["bn", nn.ReLU()]}, r"where=ReLU\(\); expected a glob"),
        ({"where": lambda path: True}, r"cannot be called with 2 arguments; expected a function of path and module"),
        ({"groups": lambda channels: 4}, "cannot be called with 2 arguments; expected a function of channels and posi"),
        ({"groups": {"*": lambda channels: 4}}, r"groups\['\*'\]=.*expected a function of channels and positions"),
        ({"groups": {1: 2}}, "has the key 1; expected globs over paths"),
        ({"groups": {"layer1.*": 4, "bn": "c0"}}, "'bn', which the pattern 'bn' fits: groups='c0'; expected a number"),
        ({"groups": {re.compile("bn$"): 2.5, "*": 4}}, r"'bn', which the pattern 'bn\$' fits: groups=2.5"),
        ({"where": "layr1.*"}, r"where='layr1\.\*' fits no norm of the model; .*did you mean 'layer1\.\*'"),
        ({"where": ["bn", re.compile("norm")]}, "where='norm' fits no norm of the model; .*see the paths in"),
        ({"groups": {"layer2.*": 4, "*": 2}}, r"groups='layer2\.\*' fits no norm.*did you mean 'layer1\.\*'"),
    ],
)
def test_what_cannot_be_is_told_with_what_is_expected(options, message):
    with pytest.raises(ArgumentError, match=message):
        groupnorm.plan(network(), **options)


def test_what_can_be():
    assert groupnorm.plan(network(), groups=np.int64(4))["bn"].becomes == "gn:4"
    assert groupnorm.plan(network(), where=(pattern for pattern in ["bn"])).summary.startswith("1 of 2")
    assert groupnorm.plan(nn.Sequential(nn.ReLU()), where="layer1.*").rows == []


def test_a_sample_input_that_does_not_run_is_told():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    with pytest.raises(
        ConversionError, match=r"running sample_input through the model failed: RuntimeError: .*expected"
    ):
        groupnorm.plan(model, sample_input=torch.randn(2, 4, 8, 8))
    with pytest.raises(ConversionError, match="running sample_input through the model failed"):
        groupnorm.convert(model, groupnorm.plan(model), sample_input=torch.randn(2, 4, 8, 8))
