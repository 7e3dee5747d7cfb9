"""Checkpoints from before a conversion for the model after it, and back."""

import copy

import pytest
import torch
from torch import nn

import groupnorm
from groupnorm.errors import ArgumentError, ConversionError

X = torch.randn(2, 3, 8, 8)


def network():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))


def drawn(model):
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


@pytest.mark.parametrize("to", ["gn", "ws+gn", "frn", "brn", "sn", "ln"])
def test_a_checkpoint_of_batch_norm_is_what_would_have_been_converted(to):
    trained = drawn(network())
    trained(X)
    sample = X if to == "ws+gn" else None
    expected = groupnorm.convert(trained, to, sample_input=sample)
    model = groupnorm.convert(network(), to, sample_input=sample)
    found = groupnorm.load_checkpoint_(model, trained.state_dict())
    for key, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[key], value)
    running = ("1.running_mean", "1.running_var", "1.num_batches_tracked")
    assert found.dropped == (() if to in ("brn", "sn") else running)
    assert found.renamed == ({"0.weight": "0.parametrizations.weight.original"} if to == "ws+gn" else {})
    assert found.kept == {"frn": ("1.learned_eps",), "sn": ("1.mean_weight", "1.var_weight")}.get(to, ())


@pytest.mark.parametrize("to", ["gn", "ws+gn", "frn", "sn"])
def test_a_converted_checkpoint_goes_back(to):
    converted = drawn(groupnorm.convert(network(), to, sample_input=X if to == "ws+gn" else None))
    model = network()
    before = copy.deepcopy(model.state_dict())
    found = groupnorm.load_checkpoint_(model, converted.state_dict())
    state = converted.state_dict()
    assert torch.equal(model[0].weight, state.get("0.weight", state.get("0.parametrizations.weight.original")))
    assert torch.equal(model[1].weight, converted[1].weight)
    assert found.renamed == ({"0.parametrizations.weight.original": "0.weight"} if to == "ws+gn" else {})
    if to != "sn":
        assert found.kept == ("1.running_mean", "1.running_var", "1.num_batches_tracked")
        assert torch.equal(model[1].running_var, before["1.running_var"])


def test_the_report_reads():
    found = groupnorm.load_checkpoint_(groupnorm.convert(network(), "frn"), network().state_dict())
    assert str(found) == (
        "6 keys loaded; 3 not used: 1.running_mean, 1.running_var, 1.num_batches_tracked; 1 not in it: 1.learned_eps"
    )


def test_other_differences_are_refused_and_nothing_is_loaded():
    model = groupnorm.convert(network())
    before = copy.deepcopy(model.state_dict())
    state = drawn(network()).state_dict()
    with pytest.raises(ConversionError, match=r"has \['more'\] that the model lacks, and lacks \['4.bias'\]; expected"):
        groupnorm.load_checkpoint_(model, {**{k: v for k, v in state.items() if k != "4.bias"}, "more": X})
    with pytest.raises(ConversionError, match=r"has nothing that the model lacks, and lacks \['1.weight'\]"):
        groupnorm.load_checkpoint_(model, {k: v for k, v in state.items() if k != "1.weight"})
    with pytest.raises(ArgumentError, match=r"4.bias has shape \(5,\) in the checkpoint; expected \(4,\)"):
        groupnorm.load_checkpoint_(model, {**state, "4.bias": torch.zeros(5)})
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
