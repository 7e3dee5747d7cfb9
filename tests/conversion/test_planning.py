"""What a conversion would do, told before anything is touched."""

import copy
import io
import re

import pytest
import torch
from torch import nn

import groupnorm
from groupnorm.conversion.plan import Plan
from groupnorm.errors import ArgumentError, ConversionError, UnknownNameError


class Net(nn.Module):
    """Convolutions before some norms, norms of several kinds, one shared."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.bn = nn.BatchNorm2d(16)
        self.shared = self.bn
        self.depthwise = nn.Conv2d(16, 16, 1, groups=16)
        self.alone = nn.BatchNorm2d(16)
        self.gn = nn.GroupNorm(4, 16)
        self.norm = nn.InstanceNorm2d(16)
        self.last = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(16), nn.Flatten(), nn.LayerNorm(16))

    def forward(self, x):
        x = self.shared(self.bn(self.conv(x)))
        return self.last(self.norm(self.gn(self.alone(self.depthwise(x)))))


X = torch.randn(2, 3, 8, 8)


def actions(plan):
    return {row.path: (row.action, row.becomes) for row in plan.rows}


def test_each_norm_over_channels_has_a_row_and_the_model_stays_as_it_is():
    model = Net()
    state, text = copy.deepcopy(model.state_dict()), str(model)
    plan = groupnorm.plan(model, sample_input=X)
    assert actions(plan) == {
        "bn": ("replace", "gn:8"),
        "alone": ("replace", "gn:8"),
        "gn": ("skip", "gn:4"),
        "norm": ("replace", "gn:8"),
        "last.1": ("replace", "gn:8"),
    }
    assert plan["shared"] is plan["bn"]
    assert plan["bn"].shared == ("shared",)
    assert plan["bn"].lost == ("running statistics",)
    assert plan["norm"].lost == ()
    assert plan["gn"].why == "has 4 groups already"
    assert str(model) == text
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert model.training


def test_other_groups_are_another_norm_and_the_same_are_not():
    model = Net()
    assert groupnorm.plan(model, "gn:8")["gn"].action == "replace"
    assert groupnorm.plan(model, "gn", groups=4)["gn"].action == "skip"
    assert groupnorm.plan(model, "ln")["gn"].action == "replace"
    assert groupnorm.plan(nn.Sequential(nn.GroupNorm(1, 8)), "ln")["0"].action == "skip"
    tracking = groupnorm.plan(nn.Sequential(nn.InstanceNorm2d(16, track_running_stats=True)), "in")
    assert tracking["0"].action == "replace"
    assert groupnorm.plan(model, "in")["norm"].why == "has 16 groups already"


def test_back_to_batch_norm_leaves_batch_norms_alone():
    plan = groupnorm.plan(Net(), "bn")
    assert [row.path for row in plan.of("replace")] == ["gn", "norm"]
    assert plan["bn"].why == "is bn already"


def test_a_group_of_one_element_is_refused_with_the_remedy():
    plan = groupnorm.plan(Net(), "gn:16", sample_input=X)
    assert [row.path for row in plan.of("refuse")] == ["last.1"]
    assert "16 groups of 16 channels at 1 position have 1 element each" in plan["last.1"].why
    assert "groups={'last.1': 1}" in plan["last.1"].why
    assert "use 'gn' for it" in groupnorm.plan(Net(), "in", sample_input=X)["last.1"].why
    mended = groupnorm.plan(Net(), "gn", groups={"last.1": 1, "*": 16}, sample_input=X)
    assert not mended.of("refuse")


def test_standardised_weights_are_those_right_before_the_norms():
    plan = groupnorm.plan(Net(), "ws+gn", sample_input=X)
    assert plan["alone"].standardized == ""
    assert "has 1 weight for each output channel" in plan["alone"].why
    assert plan["bn"].standardized == ""  # it runs twice, once after itself
    assert "no single convolution or linear layer is right before it" in plan["bn"].why
    simple = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    assert groupnorm.plan(simple, "ws+gn", sample_input=X)["1"].standardized == "0"
    assert groupnorm.plan(simple, "ws+gn", sample_input=X)["1"].becomes == "ws+gn:4"
    with pytest.raises(ArgumentError, match="no sample_input; expected an input of the model"):
        groupnorm.plan(simple, "ws+gn")


def test_a_norm_that_needs_its_convolution_is_refused_without():
    plan = groupnorm.plan(Net(), "cbn", sample_input=X)
    assert plan["last.1"].action == "refuse"
    assert "cbn needs the convolution right before it" in plan["last.1"].why
    assert plan["alone"].action == "replace"


@pytest.mark.parametrize(
    ("where", "paths"),
    [
        ("b*", ["bn"]),
        ("shared", ["bn"]),
        (re.compile("al|no"), ["alone", "norm"]),
        (nn.InstanceNorm2d, ["norm"]),
        (lambda path, module: module.track_running_stats and "last" in path, ["last.1"]),
        (["bn", nn.InstanceNorm2d], ["bn", "norm"]),
        ([], []),
    ],
)
def test_where_selects(where, paths):
    def only(path, module):
        return not isinstance(module, nn.GroupNorm) and where(path, module)

    plan = groupnorm.plan(Net(), where=only if callable(where) and not isinstance(where, type) else where)
    assert [row.path for row in plan.of("replace")] == paths


def test_arguments_that_cannot_be():
    with pytest.raises(ArgumentError, match="where=5; expected a glob"):
        groupnorm.plan(Net(), where=5)
    with pytest.raises(ArgumentError, match=r"groups=4 with to='gn' and its 8; expected groups= only where"):
        groupnorm.plan(Net(), "gn:8", groups=4)
    with pytest.raises(ArgumentError, match=r"groups=4 with to='bn'; expected groups= only where"):
        groupnorm.plan(Net(), "bn", groups=4)
    with pytest.raises(UnknownNameError, match="did you mean 'gn'"):
        groupnorm.plan(Net(), "groupnorm")
    with pytest.raises(ArgumentError, match=r"no norm at 'nowhere'; expected one of \['bn'"):
        groupnorm.plan(Net())["nowhere"]


def test_a_plan_goes_through_json():
    plan = groupnorm.plan(Net(), "ws+gn", sample_input=X)
    assert Plan.from_json(plan.to_json()) == plan


def test_a_plan_prints():
    text = str(groupnorm.plan(Net(), "gn:16", sample_input=X)).splitlines()
    assert text[0] == "3 of 5 norms become gn:16, 1 left alone, 1 cannot be converted; 2 lose running statistics"
    assert text[2].split() == ["path", "norm", "becomes", "remark"]
    assert text[3].split() == ["bn", "=", "shared", "BatchNorm2d(16)", "gn:16"]
    assert text[5].split()[:3] == ["gn", "GroupNorm(4,", "16)"]
    assert len({line.index("gn:16") for line in (*text[3:6], text[2].replace("becomes", "gn:16"))}) == 1


def test_a_plan_prints_in_colours():
    from rich.console import Console

    console = Console(width=100, file=io.StringIO())
    console.print(groupnorm.plan(Net(), "gn:16", sample_input=X))
    shown = console.file.getvalue()
    assert "3 of 5 norms become gn:16" in shown
    assert "refused" in shown


class OwnBatchNorm(nn.BatchNorm2d):
    pass


class MyGroupNorm2d(nn.Module):
    def forward(self, x):
        return x


@pytest.mark.parametrize("norm", [OwnBatchNorm(8), MyGroupNorm2d()])
def test_an_unknown_norm_is_refused_until_there_is_a_rule(norm, monkeypatch):
    from groupnorm.conversion import rules

    monkeypatch.setattr(rules, "_RULES", dict(rules._RULES))
    model = nn.Sequential(norm)
    plan = groupnorm.plan(model)
    assert plan["0"].action == "refuse"
    assert f"@groupnorm.convert.rule({type(norm).__name__})" in plan["0"].why
    with pytest.raises(ConversionError, match=r"1 norms cannot be converted:\n- 0: .*is a norm that no rule knows"):
        groupnorm.convert(model)

    @groupnorm.convert.rule(type(norm))
    def facts(module):
        return groupnorm.convert.Facts("bn", 8, 1e-5, rank=4)

    assert groupnorm.plan(model)["0"].action == "replace"
