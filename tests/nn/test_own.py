"""Norms of the user's own, wherever a spec is taken: as a class, a function, or a path."""

import sys

import pytest
import torch
from torch import nn

import groupnorm
from groupnorm.errors import ArgumentError, UnknownNameError
from groupnorm.nn import norm_layer
from groupnorm.nn.factory import parse
from groupnorm.nn.own import is_own
from groupnorm.sets import batch_set, group_set, instance_set

X = torch.randn(4, 8, 6, 6)


class Halves(nn.GroupNorm):
    """Group norm with two groups."""

    shared_sets = group_set(2)

    def __init__(self, channels, eps=1e-5, affine=True):
        super().__init__(2, channels, eps, affine)


def each_map(channels, **options):
    return nn.InstanceNorm2d(channels, **options)


each_map.shared_sets = (instance_set(),)


class Wrong(Halves):
    """It says that it shares over the batch, and does not."""

    shared_sets = batch_set()


@pytest.fixture
def path(tmp_path, monkeypatch):
    (tmp_path / "own_norms.py").write_text(
        "from torch import nn\n"
        "from groupnorm.sets import group_set\n"
        "class Halves(nn.GroupNorm):\n"
        "    shared_sets = group_set(2)\n"
        "    def __init__(self, channels, eps=1e-5, affine=True):\n"
        "        super().__init__(2, channels, eps, affine)\n"
        "nothing = 3\n"
        "def broken(channels):\n"
        "    return channels\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_norms", raising=False)
    return "own_norms:Halves"


def test_a_class_a_function_and_a_path_are_specs(path):
    for norm in (Halves, each_map, path):
        layer = norm_layer(norm)(8)
        torch.testing.assert_close(layer(X), layer(X))
    assert isinstance(norm_layer(Halves)(8), Halves)
    assert type(norm_layer(path)(8)).__name__ == "Halves"
    torch.testing.assert_close(norm_layer(path)(8)(X), nn.functional.group_norm(X, 2))


def test_options_that_it_takes_are_passed_on():
    layer = norm_layer(Halves)(8, eps=1e-3, dtype=torch.float64)
    assert layer.eps == 1e-3
    assert layer.weight.dtype == torch.float64, "it takes no dtype, and is moved"


def test_it_is_the_activation_too_where_a_model_asks_for_it():
    layer = norm_layer(Halves, activation="relu")(8)
    assert layer(X).min() == 0


def test_what_it_declares_is_its_row(path):
    assert parse(path).row.axes == parse("gn").row.sets(2)[0].words("sample", "channel", "position")
    assert parse(f"ws+{path}").standardized
    assert parse(path).row.drawn == (group_set(2),)


def test_check_norm_holds_it_to_what_it_declares(path):
    groupnorm.check_norm(Halves)
    groupnorm.check_norm(each_map)
    groupnorm.check_norm(path)
    with pytest.raises(ArgumentError, match=r"the output of norm .*:Wrong' for an input .* from the definition with"):
        groupnorm.check_norm(Wrong)
    with pytest.raises(ArgumentError, match="declares 0 sets; expected one: set shared_sets"):
        groupnorm.check_norm(nn.BatchNorm2d)


def test_a_gradient_that_is_wrong_is_seen():
    class Detached(Halves):
        def forward(self, x):
            return super().forward(x.detach()) + 0 * x

    with pytest.raises(ArgumentError, match="the gradient of norm"):
        groupnorm.check_norm(Detached)


def test_models_are_planned_and_converted_to_it(path):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    for to in (Halves, path):
        plan = groupnorm.plan(model, to)
        assert plan["1"].lost == ("running statistics",)
        new = groupnorm.convert(model, to)
        assert type(new[1]).__name__ == "Halves"
        assert torch.equal(new[1].weight, model[1].weight)
        images = torch.randn(2, 3, 8, 8)
        report = groupnorm.convert_(model, plan)
        torch.testing.assert_close(model(images), new(images))
        report.undo()
        assert type(model[1]) is nn.BatchNorm2d


def test_specs_of_the_catalog_are_not_taken_for_paths():
    assert not is_own("gn:8")
    assert not is_own("ws+gn:c16")
    assert is_own("ws+package.module:Norm")
    with pytest.raises(UnknownNameError, match="unknown norm 'gn:abc'"):
        norm_layer("gn:abc")


@pytest.mark.parametrize(
    ("norm", "message"),
    [
        ("no_such_module:Norm", "norm 'no_such_module:Norm' cannot be imported"),
        ("own_norms:Nothing", "norm 'own_norms:Nothing' cannot be imported"),
        ("own_norms:nothing", "is of type int; expected a function or class"),
        (3, "norm is 3; expected a spec such as 'gn'"),
    ],
)
def test_what_cannot_be_one_is_told(norm, message, path):
    with pytest.raises(ArgumentError, match=message):
        norm_layer(norm)


def test_a_function_that_returns_no_module_is_told(path):
    with pytest.raises(ArgumentError, match=r"returned int for 8 channels; expected a torch.nn.Module"):
        norm_layer("own_norms:broken")(8)


def test_a_declaration_that_is_none_is_told():
    def norm(channels):
        return nn.Identity()

    norm.shared_sets = "all"
    with pytest.raises(ArgumentError, match=r"shared_sets='all'; expected a groupnorm.sets.SharedSet"):
        norm_layer(norm)
