"""Checkpoints from before a conversion for the model after it, and back."""

import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

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


def test_state_that_is_no_tensor_goes_through_its_module():
    trained = groupnorm.convert(network(), "cbn", sample_input=X)
    trained[1].set_extra_state({"steps": 7, "past": []})
    model = groupnorm.convert(network(), "cbn", sample_input=X)
    assert "1._extra_state" in groupnorm.load_checkpoint_(model, trained.state_dict()).loaded
    assert model[1].get_extra_state()["steps"] == 7
    found = groupnorm.load_checkpoint_(model, network().state_dict())
    assert found.kept == ("1._extra_state",)
    back = groupnorm.load_checkpoint_(network(), trained.state_dict())
    assert back.dropped == ("1._extra_state",)


class Counting(nn.Linear):
    """Its extra state is a tensor that it makes when it is asked."""

    calls = 0

    def get_extra_state(self):
        return torch.tensor([self.calls])

    def set_extra_state(self, state):
        self.calls = int(state)


def test_state_that_is_a_tensor_goes_through_its_module():
    trained, model = nn.Sequential(Counting(2, 2)), nn.Sequential(Counting(2, 2))
    trained[0].calls = 3
    groupnorm.load_checkpoint_(model, trained.state_dict())
    assert model[0].calls == 3


class OddBatchNorm(nn.BatchNorm2d):
    """A norm that no rule knows."""


def test_a_norm_that_no_rule_knows_has_to_be_the_same():
    trained = drawn(nn.Sequential(nn.Conv2d(3, 8, 3), OddBatchNorm(8), nn.BatchNorm2d(8)))
    model = groupnorm.convert(trained, "gn", where="2")
    drawn(model)
    found = groupnorm.load_checkpoint_(model, trained.state_dict())
    assert torch.equal(model[1].weight, trained[1].weight)
    assert found.dropped == ("2.running_mean", "2.running_var", "2.num_batches_tracked")
    state = trained.state_dict()
    del state["1.running_mean"]
    with pytest.raises(ConversionError, match=r"lacks \['1.running_mean'\]"):
        groupnorm.load_checkpoint_(model, state)


class Squared(nn.Module):
    def forward(self, x):
        return x**2


@pytest.mark.parametrize("standardized", [False, True])
def test_only_standardised_weights_are_renamed(standardized):
    model, state = network(), drawn(network()).state_dict()
    if standardized:
        groupnorm.nn.standardize_weight_(model[0])
    parametrize.register_parametrization(model[0], "weight", Squared())
    with pytest.raises(ConversionError, match=r"has \['0.weight'\].*lacks \['0.parametrizations.weight.original'\]"):
        groupnorm.load_checkpoint_(model, state)


def test_the_scale_of_a_norm_is_not_passed_over_for_its_parametrization():
    model, state = groupnorm.convert(network()), drawn(network()).state_dict()
    parametrize.register_parametrization(model[1], "weight", Squared())
    with pytest.raises(ConversionError, match=r"lacks \['1.parametrizations.weight.original'\]"):
        groupnorm.load_checkpoint_(model, state)
    with pytest.raises(ConversionError, match=r"lacks \['1.weight'\]"):
        groupnorm.load_checkpoint_(network(), model.state_dict())


def test_a_norm_alone_is_a_model():
    with pytest.raises(ConversionError, match=r"lacks \['weight', 'bias'\]"):
        groupnorm.load_checkpoint_(nn.BatchNorm2d(8), {})


def test_what_a_checkpoint_may_be_instead_is_told(tmp_path):
    model, state = groupnorm.convert(network()), network().state_dict()
    with pytest.raises(ArgumentError, match=r"the path '.*x\.pt'; expected a state dict: load it with torch\.load"):
        groupnorm.load_checkpoint_(model, tmp_path / "x.pt")
    with pytest.raises(ArgumentError, match=r"checkpoint is a Sequential; expected a state dict: pass its state_dict"):
        groupnorm.load_checkpoint_(model, network())
    with pytest.raises(ArgumentError, match=r"with tensors under 'state_dict'.*: pass checkpoint\['state_dict'\]"):
        groupnorm.load_checkpoint_(model, {"epoch": 3, "state_dict": state})
    wrapped = {f"module.{key}": value for key, value in state.items()}
    with pytest.raises(ConversionError, match=r"keys begin with 'module\.', .*: pass {key\.removeprefix\('module\.'\)"):
        groupnorm.load_checkpoint_(model, wrapped)
    with pytest.raises(ConversionError, match=r"keys of the model begin with 'module\.', .*: pass model\.module"):
        groupnorm.load_checkpoint_(nn.Sequential(OrderedDict(module=model)), state)
    with pytest.raises(
        ConversionError, match=r"has \['a.weight'.* and 2 more that .*load it with model\.load_state_dict"
    ):
        groupnorm.load_checkpoint_(model, {f"{name}.weight": X for name in "abcdefg"})
    with pytest.raises(ArgumentError, match=r"4.bias is a list in the checkpoint; expected a tensor of shape \(4,\)"):
        groupnorm.load_checkpoint_(model, {**state, "4.bias": [0.0] * 4})
