"""Running statistics computed anew, against their definition over all of the data."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import groupnorm
from groupnorm.errors import ArgumentError, ConversionError, SingleElementError, UnknownNameError


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4)
    ).double()


DATA = [torch.randn(size, 3, 8, 8, dtype=torch.float64) * size for size in (4, 4, 6)]


def moments(parts, estimator):
    """Mean and unbiased variance of tensors ``[N, C, H, W]``."""
    whole = torch.cat(parts)
    if estimator == "pooled":
        return whole.mean((0, 2, 3)), whole.var((0, 2, 3))
    weights = torch.tensor([part.numel() for part in parts]).double() / whole.numel()
    return whole.mean((0, 2, 3)), sum(w * part.var((0, 2, 3)) for w, part in zip(weights, parts, strict=True))


@pytest.mark.parametrize("estimator", ["pooled", "average"])
def test_they_are_those_of_all_batches_each_normalised_by_itself(estimator):
    model = network()
    done = []
    found = groupnorm.recompute_statistics_(model, [(x, None) for x in DATA], estimator=estimator, progress=done.append)
    assert found == ["1", "5"]
    assert done == [1, 2, 3]
    first = [model[0](x) for x in DATA]
    second = [model[4](F.relu(F.batch_norm(x, None, None, model[1].weight, model[1].bias, True))) for x in first]
    for norm, parts in ((model[1], first), (model[5], second)):
        mean, variance = moments(parts, estimator)
        torch.testing.assert_close(norm.running_mean, mean)
        torch.testing.assert_close(norm.running_var, variance)
        assert norm.num_batches_tracked == 3


def test_all_else_stays():
    model = network()
    model[1].eval()
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    random = torch.get_rng_state()
    groupnorm.recompute_statistics_(model, DATA)
    assert torch.equal(random, torch.get_rng_state())
    assert [m.training for m in model.modules()] == modes
    assert not any(m._forward_hooks for m in model.modules())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) is not name.endswith(("running_mean", "running_var", "tracked"))


def test_a_group_norm_network_turned_into_batch_norm_can_be_evaluated():
    model = groupnorm.convert(groupnorm.convert(network(), "gn:2"), "bn")
    groupnorm.recompute_statistics_(model, DATA)
    y = model.eval()(torch.cat(DATA))
    assert y.mean((0, 2, 3)).abs().max() < 1
    assert y.std((0, 2, 3)).min() > 0.1


@pytest.mark.parametrize("spec", ["brn", "ghost", "syncbn"])
def test_relatives_that_evaluate_as_batch_norm_have_the_same(spec):
    model, plain = groupnorm.convert(network(), spec), network()
    for one in (model, plain):
        groupnorm.recompute_statistics_(one, DATA)
    assert torch.equal(model[5].running_var, plain[5].running_var)


def test_the_activation_of_a_norm_is_applied():
    import timm.layers.norm_act as norms

    model, apart = network(), network()
    model[1], model[2] = norms.BatchNormAct2d(8).double(), nn.Identity()
    for one in (model, apart):
        groupnorm.recompute_statistics_(one, DATA)
    torch.testing.assert_close(model[5].running_var, apart[5].running_var)


class OddBatchNorm(nn.BatchNorm2d):
    """A norm that no rule knows."""


def test_a_norm_that_no_rule_knows_is_passed_over():
    model = network()
    model[1] = OddBatchNorm(8).double()
    assert groupnorm.recompute_statistics_(model, DATA) == ["5"]
    assert model[1].num_batches_tracked == 0


def test_an_activation_that_a_rule_tells_is_applied():
    class Activated(nn.BatchNorm2d):
        def forward(self, x):
            return torch.sigmoid(super().forward(x)) * super().forward(x)

    @groupnorm.convert.rule(Activated)
    def known(module):
        return groupnorm.convert.Facts("bn", 8, module.eps, rank=4, activation="silu")

    model, apart = network(), network()
    model[1], apart[2] = Activated(8).double(), nn.Sequential(nn.SiLU(), nn.ReLU())
    for one in (model, apart):
        groupnorm.recompute_statistics_(one, DATA)
    torch.testing.assert_close(model[5].running_var, apart[5].running_var)


def test_norms_called_by_keyword_have_theirs():
    class ByKeyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm2d(3).double()

        def forward(self, x):
            return self.bn(input=x)

    model = ByKeyword()
    groupnorm.recompute_statistics_(model, [{"x": x} for x in DATA])
    torch.testing.assert_close(model.bn.running_mean, torch.cat(DATA).mean((0, 2, 3)))


def test_a_model_without_parameters():
    model = nn.Sequential(nn.BatchNorm2d(3, affine=False)).double()
    groupnorm.recompute_statistics_(model, DATA)
    torch.testing.assert_close(model[0].running_mean, torch.cat(DATA).mean((0, 2, 3)))


def test_what_a_batch_cannot_have_changes_nothing():
    model, data = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)), [torch.randn(5, 4), torch.randn(5, 4)]
    before = copy.deepcopy(model.state_dict())
    alone = r"norm '1' gets an input \(1, 8\) in batch 3, whose elements for each channel are 1; .*drop_last=True"
    with pytest.raises(SingleElementError, match=alone):
        groupnorm.recompute_statistics_(model, [*data, torch.randn(1, 4)])
    with pytest.raises(ArgumentError, match=r"norm '1' gets values that are not finite in batch 2"):
        groupnorm.recompute_statistics_(model, [data[0], data[1] / 0])
    with pytest.raises(ArgumentError, match=r"data is one Tensor of shape \(5, 4\); expected batches"):
        groupnorm.recompute_statistics_(model, data[0])
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_norms_with_other_statistics_are_told():
    model = nn.Sequential(groupnorm.norm_layer("bcn:2")(8), groupnorm.norm_layer("mabn")(8))
    with pytest.raises(ConversionError, match=r"running statistics in norms \['bcn', 'mabn'\] alone; expected some of"):
        groupnorm.recompute_statistics_(model, DATA)


def test_what_cannot_be():
    with pytest.raises(ConversionError, match="no batch norm with running statistics; expected some"):
        groupnorm.recompute_statistics_(groupnorm.convert(network()), DATA)
    with pytest.raises(ArgumentError, match="data has no batches"):
        groupnorm.recompute_statistics_(network(), [])
    with pytest.raises(UnknownNameError, match="unknown estimator 'mean'; expected one of: pooled, average"):
        groupnorm.recompute_statistics_(network(), DATA, estimator="mean")


def test_norms_that_the_data_do_not_reach_keep_theirs_and_are_not_returned():
    class Part(nn.Sequential):
        def forward(self, x):
            return self[1](self[0](x))

    model = Part(*network())
    model[5].running_mean.fill_(3)
    assert groupnorm.recompute_statistics_(model, DATA) == ["1"]
    assert (model[5].running_mean == 3).all()
