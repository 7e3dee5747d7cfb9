"""What a conversion would do, told before anything is touched."""

import copy
import io
import re

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

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


def deep(positions=1):
    return nn.Sequential(nn.AdaptiveAvgPool2d(positions), nn.BatchNorm2d(3))


def test_parts_that_do_not_divide_what_a_layer_receives_are_refused():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    row = groupnorm.plan(model, "bgn:16", sample_input=torch.randn(1, 3, 7, 7)).rows[0]
    assert row.action == "refuse"
    assert "=200 cannot be divided by num_groups=16" in row.why
    assert groupnorm.plan(model, "bgn:16", sample_input=X).rows[0].action == "replace"


TRAINED_ON_BATCHES = ["bn", "ghost", "brn", "mabn", "cbn", "gbgn:4", "pn", "bcn:1", "cn:1"]


@pytest.mark.parametrize("spec", ["ghost:1", "in", "bcn-micro:3", "cn:3", "gn:3"])
def test_layers_that_no_batch_could_train_are_refused_by_their_names(spec):
    for samples in (1, 4):
        row = groupnorm.plan(deep(), spec, sample_input=torch.randn(samples, 3, 8, 8)).rows[0]
        assert row.action == "refuse"
        assert "1 element" in row.why
    assert groupnorm.plan(deep(2), spec, sample_input=torch.randn(1, 3, 8, 8)).rows[0].action == "replace"
    assert groupnorm.plan(deep(), spec).rows[0].action == "replace"


@pytest.mark.parametrize("spec", TRAINED_ON_BATCHES)
def test_layers_that_a_batch_as_small_as_the_sample_does_not_train_are_flagged(spec):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4) if spec == "bn" else nn.BatchNorm2d(4))
    plan = groupnorm.plan(model, spec, sample_input=torch.randn(1, 3, 3, 3))
    assert plan.rows[0].action == "replace"
    assert "cannot train on batches as small as sample_input, 1" in plan.rows[0].why
    assert plan.summary.endswith("; 1 cannot train on batches as small as sample_input")
    for few in (torch.randn(2, 3, 3, 3), torch.randn(1, 3, 4, 4)):
        assert "cannot train" not in groupnorm.plan(model, spec, sample_input=few).rows[0].why


@pytest.mark.parametrize("spec", ["frn", "rms", "ln", "gn", "frozen", "sn"])
def test_layers_that_train_on_one_element_or_have_more_are_not(spec):
    row = groupnorm.plan(deep(), spec, sample_input=torch.randn(1, 3, 8, 8)).rows[0]
    assert (row.action, row.why) == ("replace", "") or spec in ("gn", "sn")


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.InstanceNorm1d(8, affine=True), (8, 9)),
        (nn.InstanceNorm2d(8, affine=True), (8, 8, 5)),
        (nn.InstanceNorm3d(8, track_running_stats=True), (8, 8, 5, 5)),
    ],
)
@pytest.mark.parametrize("spec", ["gn:4", "ln", "bn", "brn", "frn"])
def test_an_instance_norm_of_inputs_without_a_batch_is_refused(norm, shape, spec):
    model = nn.Sequential(norm)
    plan = groupnorm.plan(model, spec, sample_input=torch.randn(shape))
    assert f"it receives {shape} without a batch axis" in plan.rows[0].why
    with pytest.raises(ConversionError, match=r"call the model with x.unsqueeze\(0\)"):
        groupnorm.convert(model, spec, sample_input=torch.randn(shape))
    assert groupnorm.plan(model, spec, sample_input=torch.randn(2, *shape)).rows[0].action == "replace"


def test_an_instance_norm_that_is_one_already_is_left_alone_whatever_it_receives():
    assert groupnorm.plan(nn.Sequential(nn.InstanceNorm2d(8)), "in", sample_input=torch.randn(8, 5, 5)).rows[0].why == (
        "has 8 groups already"
    )


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "change",
    [
        torch.nn.utils.weight_norm,
        torch.nn.utils.spectral_norm,
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    ],
)
def test_a_weight_that_a_hook_computes_is_not_standardised_and_the_plan_says_so(change):
    model = nn.Sequential(change(nn.Conv2d(3, 8, 3)), nn.BatchNorm2d(8))
    plan = groupnorm.plan(model, "ws+gn", sample_input=X)
    assert plan["1"].becomes == "gn:4"
    assert "without weight standardisation: the weight of Conv2d is computed by a hook" in plan["1"].why
    assert "use prune.remove, remove_weight_norm or remove_spectral_norm first" in plan["1"].why
    report = groupnorm.convert_(model, "ws+gn", sample_input=X)
    model(X).square().sum().backward()
    report.undo()
    plan["1"].standardized = "0"
    with pytest.raises(ConversionError, match=r"the weight of '0', before '1', cannot be standardised: .* by a hook"):
        groupnorm.convert_(model, plan)


def test_rows_that_were_not_selected_are_folded():
    from rich.console import Console

    model = nn.Sequential(*(nn.BatchNorm2d(8) for _ in range(40)))
    plan = groupnorm.plan(model, where=["3", "7"])
    lines = str(plan).splitlines()
    assert lines[0].startswith("2 of 40 norms become gn, 38 left alone")
    assert [line.split()[0] for line in lines[2:]] == ["path", "3", "7", "38"]
    assert lines[-1] == "38 more norms, not selected by where="
    console = Console(width=100, file=io.StringIO())
    console.print(plan)
    shown = console.file.getvalue()
    assert "38 more norms, not selected by where=" in shown
    assert shown.count("BatchNorm2d") == 2
    assert "more norms" not in str(groupnorm.plan(model))


class Merging(nn.Linear):
    """Works on its weight when it is told to train or to evaluate, as layers with an adapter do."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.low = nn.Parameter(torch.randn(self.weight.shape))
        self.merged = False

    def train(self, mode=True):
        super().train(mode)
        if mode == self.merged:
            self.weight.data += (-1 if mode else 1) * self.low.data
            self.merged = not mode
        return self

    def forward(self, x):
        return super().forward(x) if self.merged else super().forward(x) + nn.functional.linear(x, self.low)


def merging():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), Merging(8, 4))


def calibrate(model):
    converted = groupnorm.convert(model, "gn")
    groupnorm.calibrate_(converted, model, [X], linear=False)
    return converted


def wired(model):
    made = nn.Sequential(model[0], groupnorm.norm_layer("ws+gn")(8), *model[2:])
    vars(made)["training"], made[1].training = model.training, model.training
    groupnorm.wire_(made, X)
    return made


RUNS = [
    lambda model: groupnorm.plan(model, sample_input=X),
    lambda model: groupnorm.recompute_statistics_(model, [X]),
    calibrate,
    wired,
]


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("inner", [True, False])
@pytest.mark.parametrize("outer", [True, False])
def test_no_module_is_told_to_train_or_to_evaluate(run, outer, inner):
    model = merging().train(outer)
    model[4].train(inner)
    modes, weight, merged = [m.training for m in model], model[4].weight.clone(), model[4].merged
    made = run(model)
    for one in (model, made if isinstance(made, nn.Module) else model):
        assert torch.equal(one[4].weight, weight)
        assert one[4].merged is merged
        assert [m.training for m in one] == modes
        assert one.training is outer
    model(X).square().sum().backward()
    assert (model[4].low.grad is not None) is not merged


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("made_in_it", [True, False])
def test_models_run_in_inference_mode(run, made_in_it):
    model = merging().eval()
    expected = groupnorm.plan(model, "ws+gn", sample_input=X)
    with torch.inference_mode():
        x = X.clone() if made_in_it else X
        assert groupnorm.plan(model, "ws+gn", sample_input=x) == expected
        run(model)
        assert torch.is_inference_mode_enabled()
    assert model(X).requires_grad


def test_a_forward_in_inference_mode_shows_the_layer_before_a_norm():
    class Inferring(nn.Sequential):
        forward = torch.inference_mode()(nn.Sequential.forward)

    assert groupnorm.plan(Inferring(*merging()), "ws+gn", sample_input=X)["1"].standardized == "0"


def test_an_activation_in_place_is_seen_in_inference_mode():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.BatchNorm2d(8))
    with torch.inference_mode():
        assert groupnorm.plan(model, "ws+gn", sample_input=X.clone())["2"].standardized == ""
