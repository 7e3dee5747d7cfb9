"""The way back: in reverse order, and to where the model is by then."""

import sys

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import groupnorm
from groupnorm.errors import ConversionError
from groupnorm.nn.weight_standardization import unstandardize_weight_


def network(**options):
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, **options), nn.ReLU(), nn.Conv2d(8, 4, 3))


X = torch.randn(2, 3, 8, 8)


def test_conversions_are_undone_the_last_first():
    model = network()
    norm = model[1]
    first = groupnorm.convert_(model, "gn")
    second = groupnorm.convert_(model, "brn")
    later = model[1]
    with pytest.raises(ConversionError, match=r"'1' holds BatchRenorm and no longer the GroupNorm.*undo the later"):
        first.undo()
    assert model[1] is later
    second.undo()
    first.undo()
    assert model[1] is norm


def test_a_weight_that_is_standardised_no_longer_stops_before_anything_is_changed():
    model = network()
    report = groupnorm.convert_(model, "ws+gn", sample_input=X)
    norm = model[1]
    unstandardize_weight_(model[0], fold=True)
    with pytest.raises(ConversionError, match="no longer the one that this conversion standardised"):
        report.undo()
    assert model[1] is norm


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("spec", ["gn", "brn", "bcn"])
def test_what_only_the_old_norm_has_follows_the_dtype_of_the_model(spec, affine):
    model = network(affine=affine)
    model(X)
    mean = model[1].running_mean.clone()
    report = groupnorm.convert_(model, spec)
    model.double()
    report.undo()
    model.eval()(X.double())
    assert {t.dtype for t in model.state_dict().values()} == {torch.float64, torch.int64}
    assert torch.equal(model[1].running_mean, mean.double())


def test_a_norm_in_another_dtype_than_its_statistics_stays_so():
    model = network()
    model[1].weight.data, model[1].bias.data = model[1].weight.bfloat16(), model[1].bias.bfloat16()
    groupnorm.convert_(model, "gn").undo()
    assert (model[1].weight.dtype, model[1].running_mean.dtype) == (torch.bfloat16, torch.float32)


def linear():
    return nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))


@pytest.mark.parametrize(("make", "x"), [(network, X), (linear, torch.randn(4, 8))])
@pytest.mark.parametrize("spec", ["ws+gn", "ws+bcn"])
def test_parameters_come_back_in_the_order_they_had(spec, make, x):
    model = make()
    order = [name for name, _ in model.named_parameters()]
    report = groupnorm.convert_(model, spec, sample_input=x)
    report.undo()
    assert [name for name, _ in model.named_parameters()] == order
    assert list(model.state_dict()) == list(make().state_dict())


def test_parameters_come_back_in_their_order_after_a_failure_half_way(monkeypatch):
    model = nn.Sequential(*network(), nn.BatchNorm2d(4))
    order = [name for name, _ in model.named_parameters()]
    module = sys.modules["groupnorm.conversion.convert"]
    standardize = module.standardize_weight_
    done = []

    def failing(layer):
        standardize(layer)
        done.append(layer)
        if len(done) == 2:
            raise RuntimeError("half way")

    monkeypatch.setattr(module, "standardize_weight_", failing)
    with pytest.raises(RuntimeError, match="half way"):
        groupnorm.convert_(model, "ws+gn", sample_input=X)
    assert [name for name, _ in model.named_parameters()] == order
    assert not any(parametrize.is_parametrized(layer) for layer in model)


def test_a_parameter_that_came_later_stays_and_comes_last():
    model = network()
    report = groupnorm.convert_(model, "ws+gn", sample_input=X)
    model[0].gain = nn.Parameter(torch.ones(1))
    report.undo()
    assert list(model[0]._parameters) == ["weight", "bias", "gain"]


def parametrized():
    """The first convolution has a parametrization already."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4))
    nn.utils.parametrizations.spectral_norm(model[0])
    return model


def test_a_weight_with_another_parametrization_is_as_before_after_an_undo():
    model = parametrized().eval()
    y, keys = model(X), list(model.state_dict())
    report = groupnorm.convert_(model, "ws+gn", sample_input=X)
    assert len(model[0].parametrizations.weight) == 2
    assert len(model[3].parametrizations.weight) == 1
    report.undo()
    assert list(model.state_dict()) == keys
    assert torch.equal(model(X), y)


def test_a_parametrization_that_was_added_since_stops_an_undo_before_anything_is_changed():
    model = parametrized()
    report = groupnorm.convert_(model, "ws+gn", sample_input=X)
    parametrize.register_parametrization(model[0], "weight", nn.Identity())
    norm = model[1]
    with pytest.raises(ConversionError, match="no longer the one that this conversion standardised"):
        report.undo()
    assert model[1] is norm


def test_a_failure_after_a_weight_with_another_parametrization_leaves_the_model_as_it_was(monkeypatch):
    model = parametrized().eval()
    y, keys = model(X), list(model.state_dict())
    module = sys.modules["groupnorm.conversion.convert"]
    standardize = module.standardize_weight_

    def fails_at_the_second(layer):
        if layer is model[3]:
            raise RuntimeError("no memory")
        standardize(layer)

    monkeypatch.setattr(module, "standardize_weight_", fails_at_the_second)
    with pytest.raises(RuntimeError, match="no memory"):
        groupnorm.convert_(model, "ws+gn", sample_input=X)
    assert list(model.state_dict()) == keys
    assert torch.equal(model(X), y)
