"""Group norms that take over their activation: what is fused, what has to be left alone, and the way back."""

import copy
import json
import pickle
import warnings
from collections import OrderedDict

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel
from torch import Tensor, nn
from torch.nn.utils import parametrize

import groupnorm
from groupnorm.conversion import NothingConvertedWarning, Plan
from groupnorm.conversion.followed import follow_
from groupnorm.conversion.fusion import rewritten, source
from groupnorm.errors import ConversionError

X = torch.randn(2, 8, 6, 6)


def outputs(result):
    return result if isinstance(result, Tensor) else result.sample


def results(model, inputs, training):
    """Output and all gradients under a random upstream gradient, which is the same in every call."""
    model.train(training).zero_grad()
    inputs = [x.clone().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs]
    torch.manual_seed(1)
    y = outputs(model(*inputs))
    y.backward(torch.randn_like(y))
    leaves = {**dict(model.named_parameters()), **{str(i): x for i, x in enumerate(inputs) if isinstance(x, Tensor)}}
    return {"y": y.detach(), **{name: p.grad.clone() for name, p in leaves.items() if p.grad is not None}}


def accelerated(model, *inputs):
    """Accelerate a model in float64, where rounding is far below any mistake, and look at all that it computes."""
    model.double()
    for module in model.modules():
        if isinstance(module, nn.GroupNorm) and module.affine:
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    inputs = [x.double() if isinstance(x, Tensor) else x for x in inputs]
    before = [results(model, inputs, training) for training in (True, False)]
    text, state = str(model), {k: (v, v.clone()) for k, v in model.state_dict(keep_vars=True).items()}
    classes = [type(module) for module in model.modules()]
    plan = groupnorm.accelerate_.plan(model)
    assert (str(model), [type(module) for module in model.modules()]) == (text, classes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NothingConvertedWarning)
        report = groupnorm.accelerate_(model)
    assert report.plan == plan
    after = [results(model, inputs, training) for training in (True, False)]
    torch.testing.assert_close(after, before)
    now = model.state_dict(keep_vars=True)
    assert list(now) == list(state)
    assert all(now[key] is value for key, (value, _) in state.items())
    report.undo()
    assert (str(model), [type(module) for module in model.modules()]) == (text, classes)
    assert all(torch.equal(value, copied) for value, copied in state.values())
    torch.testing.assert_close([results(model, inputs, t) for t in (True, False)], before, rtol=0, atol=0)
    return plan


def fused(plan):
    return sum(row.action == "replace" and row.new != "gn" for row in plan.rows)


def left(plan):
    """Why norms have no activation."""
    return [row.why for row in plan.rows if "+" not in row.new]


def gn(channels=8):
    return nn.GroupNorm(4, channels)


# Real networks


def vae():
    return AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=2 * ["DownEncoderBlock2D"],
        up_block_types=2 * ["UpDecoderBlock2D"],
    )


def unet(**options):
    down, up = ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")
    return UNet2DModel(block_out_channels=(32, 64), down_block_types=down, up_block_types=up, **options)


def conditional():
    return UNet2DConditionModel(
        block_out_channels=(32, 64), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=16,
    )  # fmt: skip


IMAGE = torch.randn(2, 3, 16, 16)
STEP = torch.tensor([1, 7])
DECORATED = "UNet2DConditionModel.forward is decorated, overridden or no plain method"
NOTHING = "no activation follows it"
HANDS = "ResNet.forward_intermediates hands on self"


@pytest.mark.filterwarnings("ignore")  # of the libraries
@pytest.mark.parametrize(
    ("make", "inputs", "count", "reasons"),
    [
        (lambda: torchvision.models.resnet50(norm_layer=lambda c: nn.GroupNorm(32, c)), (IMAGE,), 33, 20 * [NOTHING]),
        (lambda: torchvision.models.resnet18(norm_layer=lambda c: nn.GroupNorm(32, c)), (IMAGE,), 9, 11 * [NOTHING]),
        (vae, (IMAGE,), 22, 2 * [NOTHING]),
        (unet, (IMAGE, STEP), 25, 6 * [NOTHING]),
        (lambda: unet(resnet_time_scale_shift="scale_shift"), (IMAGE, STEP), 13, 17 * [NOTHING]),
        (conditional, (torch.randn(2, 4, 16, 16), STEP, torch.randn(2, 5, 16)), 24, [*6 * [NOTHING], DECORATED]),
        (lambda: timm.create_model("resnet50_gn"), (IMAGE,), 32, [HANDS, *20 * [NOTHING]]),
        (lambda: timm.create_model("resnetv2_50x1_bit", num_classes=5), (IMAGE,), 49, []),
    ],
    ids=["resnet50", "resnet18", "vae", "unet", "unet-scale-shift", "unet-conditional", "timm-resnet50", "timm-bit"],
)
def test_a_real_network(make, inputs, count, reasons):
    torch.manual_seed(0)
    plan = accelerated(make(), *inputs)
    assert fused(plan) == count
    assert sorted(left(plan)) == sorted(reasons)
    assert not plan.of("refuse")


@pytest.mark.filterwarnings("ignore")
def test_a_vae_in_half_precision_and_channels_last_under_autocast_is_the_same():
    model = vae().eval().to(memory_format=torch.channels_last)
    x = IMAGE.to(memory_format=torch.channels_last)

    def run():
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            y = model(x).sample
        return y, model.to(torch.bfloat16)(x.bfloat16()).sample, model.float() and None

    before = run()
    state = copy.deepcopy(model.state_dict())
    report = groupnorm.accelerate_(model)
    model.load_state_dict(state)
    assert report.counts == {"gn+silu:32": 22, "gn:32": 2}
    torch.testing.assert_close(run(), before)


# The order of a sequence


class Scale(nn.Module):
    def forward(self, x):
        return 3 * x - 1


def test_a_sequence_with_each_activation_and_one_activation_in_several_places():
    relu = nn.ReLU(inplace=True)
    model = nn.Sequential(
        gn(), relu, Scale(), relu, gn(), nn.Identity(), nn.SiLU(), gn(), nn.GELU(), gn(), nn.Mish(), gn(), relu, gn()
    )
    plan = accelerated(model, X)
    assert [row.becomes for row in plan.rows] == ["gn+relu:4", "gn+silu:4", "gn+gelu:4", "gn:4", "gn+relu:4", "gn:4"]
    assert plan["0"].why == "takes over 1"
    groupnorm.accelerate_(model)
    assert [type(model[i]) for i in (1, 3, 6, 12)] == [nn.Identity, nn.ReLU, nn.Identity, nn.Identity]


def test_a_norm_in_two_places_of_which_one_has_no_activation_is_left_alone():
    norm = gn()
    assert fused(accelerated(nn.Sequential(norm, nn.SiLU(), norm, nn.SiLU()), X)) == 1
    assert left(accelerated(nn.Sequential(norm, nn.SiLU(), norm, Scale()), X)) == [NOTHING]
    assert left(accelerated(nn.Sequential(norm, nn.SiLU(), norm, nn.ReLU()), X)) == ["different activations follow it"]


class Taps(nn.Module):
    """Takes the output of a layer within a sequence, as perceptual losses do."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(gn(), nn.SiLU())

    def forward(self, x):
        taps = 0
        for layer in self.features:
            x = layer(x)
            taps = taps + x
        return taps


class Called(Taps):
    def forward(self, x):
        return self.features(x)


class Part(Taps):
    def forward(self, x):
        return self.features[0](x) + self.features(x)


class Reaches(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(OrderedDict(norm=gn(), act=nn.SiLU()))

    def forward(self, x):
        return self.inner(x) + self.inner.norm(x)


@pytest.mark.parametrize("kind", [Taps, Part, Reaches])
def test_a_sequence_whose_parts_are_used_is_left_alone(kind):
    plan = accelerated(kind(), X)
    assert fused(plan) == 0
    assert kind.__name__ in left(plan)[0]
    assert fused(accelerated(Called(), X)) == 1
    assert fused(accelerated(nn.Sequential(Called()), X)) == 1


# The text of a method


class Block(nn.Module):
    """One activation for all, also where it has to stay."""

    def __init__(self, act=None):
        super().__init__()
        self.norm1, self.norm2, self.conv = gn(), gn(), nn.Conv2d(8, 8, 1)
        self.drop, self.act, self.mode = nn.Identity(), act or nn.SiLU(), "plain"


class Shared(Block):
    def forward(self, x):
        h = self.norm1(x)
        h = self.conv(self.act(h))
        h = self.norm2(h)
        h = self.drop(h)
        h = self.act(h)
        return self.act(h + x)


class Nested(Block):
    def forward(self, x):
        return self.act(self.conv(self.act(self.norm1(x)))) + F.silu(self.drop(self.norm2(x)))


class OtherNames(Block):
    def forward(self, x):
        normed = self.norm1(x)
        h = self.act(normed) * 2
        normed2 = self.norm2(h)
        return torch.relu(normed2)


class Branches(Block):
    def forward(self, x):
        if x.mean() > 100:
            h = self.norm1(x)
        elif x.mean() > 1000:
            raise ValueError
        else:
            h = self.norm2(x)
        h = self.act(h)
        return h


class Setting(Block):
    def forward(self, x):
        h = self.act(self.norm1(x))
        if self.mode == "plain":
            h = self.norm2(h)
        elif self.mode == "scaled":
            h = self.norm2(h)
            h = h * 3
        else:
            h = self.norm2(h) + 1
        h = self.act(h)
        return h


@pytest.mark.parametrize("kind", [Shared, Nested, OtherNames, Branches, Setting])
def test_what_the_text_shows_is_fused(kind):
    for act in (None, nn.ReLU(inplace=True), nn.GELU()):
        assert fused(accelerated(kind(act), X)) == 2
    model = kind()
    groupnorm.accelerate_(model)
    assert isinstance(model, kind)
    assert (type(model).__name__, type(model).__qualname__) == (kind.__name__, kind.__qualname__)
    assert type(model.act) is nn.SiLU


class Residual(Block):
    def forward(self, x):
        h = self.norm1(x)
        y = self.act(h)
        return y + h


class Elsewhere(Block):
    def forward(self, x):
        h = self.norm1(x)
        h = self.act(h) + h
        return h


class Later(Block):
    def forward(self, x):
        peek = lambda: h  # noqa: E731
        h = self.norm1(x)
        h = self.act(h) + peek()
        return h


class Between(Block):
    def __init__(self, act=None):
        super().__init__(act)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        h = self.norm1(x)
        h = self.drop(h) - 0.25
        h = self.act(h)
        return h


class TrainingOnly(Block):
    def forward(self, x):
        h = self.norm1(x)
        if self.training:
            h = h * 2
        h = self.act(h)
        return h


class OneBranch(Block):
    def forward(self, x):
        h = x
        if self.training:
            h = self.norm1(x)
        h = self.act(h)
        return h


class Loop(Block):
    def forward(self, x):
        h = x
        for _ in range(2):
            h = self.act(h)
            h = self.norm1(h)
        return h


class SometimesUnactivated(Block):
    def forward(self, x):
        if self.training:
            return self.norm1(x)
        return self.act(self.norm1(x))


class Other(Block):
    def peek(self, x):
        return self.norm1(x)

    def forward(self, x):
        return self.act(self.norm1(x)) + self.peek(x)


class Aliased(Block):
    def forward(self, x):
        norm = self.norm1
        return self.act(self.norm1(x)) + norm(x)


class ByName(Block):
    def forward(self, x):
        return self.act(self.norm1(x)) + getattr(self, "norm1")(x)  # noqa: B009


class ByMadeUpName(Block):
    def other(self, x, number):
        return getattr(self, f"norm{number}")(x)

    def forward(self, x):
        return self.act(self.norm1(x)) + self.other(x, 1)


def helper(block, x):
    return block.norm1(x)


class HandsOn(Block):
    def forward(self, x):
        return self.act(self.norm1(x)) + helper(self, x)


class MadeUp(Block):
    @property
    def other(self):
        return nn.SiLU() if self.training else nn.ReLU()

    def forward(self, x):
        return self.other(self.norm1(x))


class OtherAct(Block):
    act = staticmethod(torch.sin)  # found before the module of that name

    def forward(self, x):
        return self.act(self.norm1(x))


class OtherNorm(Block):
    norm1 = staticmethod(torch.sin)

    def forward(self, x):
        return self.act(self.norm1(x))


class Assigned(Block):
    def forward(self, x):
        self.saved = h = self.norm1(x)
        h = self.act(h)
        return h + self.saved


class TwoActivations(Block):
    def forward(self, x):
        return self.act(self.norm1(x)) + F.relu(self.norm1(x))


class Super(Shared):
    def forward(self, x):
        return super().forward(x) + self.norm1(x) + self.norm2(x)


def doubled(forward):
    def run(self, x):
        return forward(self, x) + self.norm1(x)

    return run


class Decorated(Block):
    @doubled
    def forward(self, x):
        return self.act(self.norm1(x))


def twice(forward):
    return lambda self, x: 2 * forward(self, x)


def twice_at_most(forward):
    return lambda self, x: x if x is None else 2 * forward(self, x)


class DecoratedTwice(Block):
    @twice
    def forward(self, x):
        return self.act(self.norm1(x))


class DecoratedTwiceAtMost(Block):
    @twice_at_most
    def forward(self, x):
        return self.act(self.norm1(x))


class SuperTwice(Shared):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize("kind", [DecoratedTwiceAtMost, SuperTwice])
def test_a_method_that_is_not_called_by_itself_is_not_rewritten(kind):
    plan = accelerated(kind(), X)
    assert fused(plan) == 0
    assert "is decorated, overridden or no plain method" in left(plan)[0]
    assert fused(accelerated(DecoratedTwice(), X)) == 1  # a trace sees what the decorator does, where it has one path


class ReachesInto(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Nested()

    def forward(self, x):
        return self.block(x) + self.block.norm1(x) + self.block.norm2(x)


UNSAFE = [
    Residual, Elsewhere, Later, Between, TrainingOnly, OneBranch, Loop, SometimesUnactivated, Other, Aliased, ByName,
    ByMadeUpName, HandsOn, MadeUp, OtherAct, OtherNorm, Assigned, TwoActivations, Super, Decorated, ReachesInto,
]  # fmt: skip


@pytest.mark.parametrize("kind", UNSAFE)
def test_what_is_not_certain_is_left_alone_and_says_so(kind):
    plan = accelerated(kind(), X)
    assert fused(plan) == 0
    assert all(left(plan))


@pytest.mark.parametrize("kind", UNSAFE)
def test_fusing_these_would_be_wrong(kind):
    """With the activation in the norms, and the identity for it, each of the cases above computes another thing."""
    model = kind().double()
    x = X.double()
    before = [results(model, [x], training)["y"] for training in (True, False)]
    for block in model.modules():
        if isinstance(block, Block):
            block.norm1 = groupnorm.GroupNorm(4, 8, activation="silu").double()
            block.norm2 = groupnorm.GroupNorm(4, 8, activation="silu").double()
            block.act = nn.Identity()
    after = [results(model, [x], training)["y"] for training in (True, False)]
    assert not all(torch.allclose(a, b) for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize(
    ("act", "why"),
    [
        (nn.GELU(approximate="tanh"), "GELU(approximate='tanh') is not the exact GELU"),
        (type("Odd", (nn.ReLU,), {"forward": lambda self, x: x.abs()})(), "Odd is a subclass of an activation"),
        (nn.LeakyReLU(), NOTHING),
    ],
)
@pytest.mark.parametrize("kind", [Nested, lambda act: nn.Sequential(gn(), act)])
def test_other_activations_are_left_alone(kind, act, why):
    assert left(accelerated(kind(act), X))[0] == why


class Forms(Block):
    def forward(self, x):
        return F.gelu(self.norm1(x), approximate="tanh") + F.gelu(self.norm2(x))


def test_arguments_of_an_activation_are_heeded():
    assert left(accelerated(Forms(), X)) == ["F.gelu gets further arguments"]


@pytest.mark.parametrize("place", ["norm1", "act"])
@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"])
def test_whoever_looks_at_the_norm_or_the_activation_sees_what_was_seen_before(place, kind):
    model, seen = Nested(), []
    getattr(getattr(model, place), f"register_{kind}")(lambda module, *values: seen.append(values))
    upstream = torch.randn_like(X)
    model(X.clone().requires_grad_()).backward(upstream)
    before = copy.copy(seen)
    seen.clear()
    report = groupnorm.accelerate_(model)
    assert report.plan["norm1"].new == "gn"
    assert "has hooks" in report.plan["norm1"].why
    model(X.clone().requires_grad_()).backward(upstream)
    torch.testing.assert_close(seen, before)
    sequence = nn.Sequential(OrderedDict(norm1=gn(), act=nn.SiLU()))
    getattr(sequence.get_submodule(place), f"register_{kind}")(lambda *values: None)
    assert fused(groupnorm.accelerate_.plan(sequence)) == 0


@pytest.mark.parametrize("place", ["norm1", "act", ""])
def test_a_forward_that_was_replaced_on_the_instance_is_heeded(place):
    model = Nested()
    module = model.get_submodule(place)
    forward = module.forward
    module.forward = lambda x: 2 * forward(x)
    expected = model(X)
    report = groupnorm.accelerate_(model)
    assert report.plan["norm1"].new == "gn"
    assert "was replaced" in report.plan["norm1"].why
    torch.testing.assert_close(model(X), expected)


def test_a_text_that_is_not_what_runs_is_not_believed(monkeypatch):
    space = {"Block": Block}
    text = "class Made(Block):\n    def forward(self, x):\n        return self.act(self.norm1(x)) + self.norm1(x)\n"
    lines = text.replace(" + self.norm1(x)", "").splitlines(keepends=True)
    monkeypatch.setitem(source.linecache.cache, "<made>", (len(text), None, lines, "<made>"))
    exec(compile(text, "<made>", "exec"), space)
    plan = accelerated(space["Made"](), X)
    assert left(plan)[0] == "Made.forward cannot be read as text"


def test_a_setting_that_changes_afterwards_is_an_error_not_another_result():
    model = Setting()
    groupnorm.accelerate_(model)
    model.mode = "scaled"
    with pytest.raises(RuntimeError, match=r"`self.mode == 'plain'` is False now.*undo it"):
        model(X)
    model.mode = "plain"
    assert model(X).shape == X.shape


# A trace


class Listed(nn.Module):
    def __init__(self, act=None):
        super().__init__()
        self.norms = nn.ModuleList([gn(), gn()])
        self.act = act or nn.SiLU()
        self.blocks = nn.ModuleList([nn.Sequential(gn(), nn.ReLU()), nn.Sequential(gn(), nn.GELU())])

    def forward(self, x):
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x = block(self.act(norm(x)))
        return x


class ListedAndElsewhere(Listed):
    def forward(self, x):
        for norm in self.norms:
            x = self.act(norm(x))
        return self.act(x - 0.5)


class ListedBranch(Listed):
    def forward(self, x, activate=None):  # a trace gives it something
        for norm in self.norms:
            y = norm(x)
            x = y if activate is None else self.act(y)
        return x


class ListedKept(Listed):
    kept = []  # noqa: RUF012

    def forward(self, x):
        for norm in self.norms:
            y = norm(x)
            ListedKept.kept.append(y)
            x = self.act(y)
        return x


class ListedOther(Listed):
    def other(self, x):
        return self.norms[0](x)

    def forward(self, x):
        for norm in self.norms:
            x = self.act(norm(x))
        return x


class ListedSum(Listed):
    def forward(self, x):
        for norm in self.norms:
            y = norm(x)
            x = self.act(y) + y
        return x


def test_what_a_trace_without_branches_shows_is_fused():
    plan = accelerated(Listed(), X)
    assert fused(plan) == 4
    assert "blocks.1.1" not in [row.path for row in plan.rows]
    assert plan["norms.1"].why == "takes over act"


@pytest.mark.parametrize("kind", [ListedAndElsewhere, ListedBranch, ListedKept, ListedOther, ListedSum])
def test_a_trace_that_does_not_show_all_is_not_enough(kind):
    plan = accelerated(kind(), X) if kind is not ListedKept else groupnorm.accelerate_.plan(kind())
    assert fused(plan) == 0


@pytest.mark.parametrize(("kind", "first", "other"), [(Branches, "norm1", "norm2"), (Listed, "norms.0", "norms.1")])
def test_a_norm_that_stays_without_keeps_the_others_of_its_activation_so(kind, first, other):
    model = kind()
    model.get_submodule(first).register_forward_hook(lambda *_: None)
    plan = accelerated(model, X)
    assert (plan[first].new, plan[other].new) == ("gn", "gn")
    assert "follows other norms, too, which stay without" in plan[other].why


# Norms


def test_norms_of_timm_take_over_their_own_activation():
    from timm.layers.norm_act import GroupNormAct

    model = nn.Sequential(
        GroupNormAct(8, 4), GroupNormAct(8, 4, act_layer=nn.SiLU), GroupNormAct(8, 4, drop_layer=nn.Dropout),
        GroupNormAct(8, 4, apply_act=False), nn.GELU(), GroupNormAct(8, 4, act_layer=nn.Mish),
    )  # fmt: skip
    plan = accelerated(model, X)
    assert [row.new for row in plan.rows] == ["gn+relu", "gn+silu", "gn", "gn+gelu", "gn"]
    assert left(plan) == ["its own drop and act stay", "its own act stay"]
    groupnorm.accelerate_(model)
    both = follow_(groupnorm.GroupNorm(4, 8), [("act", nn.ReLU()), ("drop", nn.Dropout())])
    assert left(accelerated(nn.Sequential(both), X)) == ["is groupnorm.GroupNorm already; its own act and drop stay"]
    assert type(model[0]) is groupnorm.GroupNorm
    assert model[3].activation == "gelu"


class Strange(nn.GroupNorm):
    def forward(self, x):
        return super().forward(x) + x


class Half(nn.Module):
    def forward(self, x):
        return x / 2


def test_every_kind_of_group_norm():
    model = nn.Sequential(
        nn.GroupNorm(4, 8, affine=False), nn.SiLU(), Strange(4, 8), nn.SiLU(), groupnorm.GroupNorm(4, 8), nn.SiLU(),
        groupnorm.GroupNorm(4, 8), groupnorm.GroupNorm(4, 8, activation="relu"), nn.SiLU(), nn.GroupNorm(2, 8),
        nn.ReLU(),
    )  # fmt: skip
    parametrize.register_parametrization(model[9], "weight", Half())
    plan = accelerated(model, X)
    assert [(row.action, row.new) for row in plan.rows] == [
        ("replace", "gn+silu"), ("skip", "gn"), ("replace", "gn+silu"), ("skip", "gn"), ("skip", "gn"),
        ("replace", "gn+relu"),
    ]  # fmt: skip
    assert [row.why for row in plan.of("skip")] == [
        "what the forward of Strange does is not known", f"is groupnorm.GroupNorm already; {NOTHING}",
        "is groupnorm.GroupNorm already; has an activation",
    ]  # fmt: skip


def test_empty_batches_stay_what_they_are_in_torch():
    model = nn.Sequential(gn(), nn.SiLU())
    groupnorm.accelerate_(model)
    assert model(torch.empty(0, 8, 6, 6)).shape == (0, 8, 6, 6)


# Plan, report, copies


def test_a_plan_can_be_kept_edited_and_applied():
    model = Nested()
    plan = groupnorm.accelerate_.plan(model)
    assert "2 of 2 norms become groupnorm.GroupNorm" in str(plan)
    assert "takes over F.silu" in str(plan)
    assert plan.__rich__().row_count == 2
    plan = Plan.from_json(json.dumps(json.loads(plan.to_json())))
    assert plan == groupnorm.accelerate_.plan(model)
    plan["norm1"].new, plan["norm2"].action = "gn", "skip"
    expected = model(X)
    report = groupnorm.accelerate_(model, plan)
    assert report.counts == {"gn:4": 1}
    assert type(model) is Nested
    assert type(model.norm2) is nn.GroupNorm
    torch.testing.assert_close(model(X), expected)
    again = groupnorm.accelerate_(model)
    assert (model.norm1.activation, model.norm2.activation) == ("silu", "silu")
    torch.testing.assert_close(model(X), expected)
    again.undo()
    report.undo()
    assert type(model.norm1) is nn.GroupNorm


def test_a_plan_cannot_ask_for_what_is_not_safe():
    model = Residual()
    plan = groupnorm.accelerate_.plan(model)
    plan["norm1"].new = "gn+silu"
    with pytest.raises(ConversionError, match=r"gn\+silu:4 at 'norm1', which can only be replace gn:4 \(no activation"):
        groupnorm.accelerate_(model, plan)
    both = Branches()
    plan = groupnorm.accelerate_.plan(both)
    plan["norm1"].new = "gn"
    with pytest.raises(ConversionError, match=r"gn\+silu:4 at 'norm2'"):
        groupnorm.accelerate_(both, plan)
    plan["norm2"].new = "gn"
    assert groupnorm.accelerate_(both, plan).counts == {"gn:4": 2}
    plan = groupnorm.accelerate_.plan(nn.Sequential(gn()))
    plan["0"].number = 2
    with pytest.raises(ConversionError, match="gn:2 at '0', which can only be replace gn:4"):
        groupnorm.accelerate_(nn.Sequential(gn()), plan)
    with pytest.raises(ConversionError, match=r"the plan has GroupNorm\(4, 8\) at '0', and the model nothing"):
        groupnorm.accelerate_(nn.ModuleDict({"a": gn()}), plan)


def test_nothing_to_do_is_a_warning_and_a_wrapped_model_an_error():
    with pytest.warns(NothingConvertedWarning, match="nothing was accelerated: 0 of 0 norms"):
        assert groupnorm.accelerate_(nn.Sequential(nn.Conv2d(3, 8, 3))).counts == {}
    with pytest.warns(NothingConvertedWarning, match="0 of 1 norms"):
        assert "the model itself" in groupnorm.accelerate_(gn()).plan[""].why
    with pytest.raises(ConversionError, match="wrap it afterwards"):
        groupnorm.accelerate_(nn.DataParallel(nn.Sequential(gn())))


def test_a_failure_half_way_leaves_the_model_as_it_was(monkeypatch):
    import sys

    def fail(*arguments):
        raise RuntimeError("half way")

    model = nn.ModuleList([Nested(), nn.Sequential(gn(), nn.SiLU())])
    before = str(model)
    monkeypatch.setattr(sys.modules["groupnorm.conversion.accelerate"], "rewrite_", fail)
    with pytest.raises(RuntimeError, match="half way"):
        groupnorm.accelerate_(model)
    assert str(model) == before


def test_norms_held_elsewhere_are_told_and_keep_their_results():
    model = Nested()
    model.held = [model.norm1]
    expected = model.held[0](X)
    report = groupnorm.accelerate_(model)
    assert report.notes == [
        "held still holds a norm that was replaced, outside of its parent's children: update it by hand"
    ]
    torch.testing.assert_close(model.held[0](X), expected)


@pytest.mark.parametrize("kind", [Shared, Branches, Setting, Listed])
def test_copies_pickles_and_compiled_models_compute_the_same(kind, monkeypatch):
    model = kind().eval()
    expected = model(X)
    groupnorm.accelerate_(model)
    torch.testing.assert_close(model(X), expected)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(twin) is type(model)
        torch.testing.assert_close(twin(X), expected)
    if kind is not Branches:  # which looks at values
        torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(X), expected)
        torch.testing.assert_close(torch.export.export(model, (X,)).module()(X), expected)
    saved = pickle.dumps(model)
    if kind is not Listed:
        monkeypatch.setattr(rewritten, "_digest", lambda own: "another")
        with pytest.raises(ConversionError, match="has another source than when the model was accelerated"):
            pickle.loads(saved)


def test_instances_of_one_class_are_each_what_they_are():
    model = nn.Sequential(Setting(), Setting())
    model[1].mode = "scaled"
    assert fused(accelerated(model, X)) == 3


def test_an_accelerated_model_trains_and_its_hooks_and_modes_come_back():
    model, seen = nn.Sequential(Shared(), nn.Sequential(gn(), nn.ReLU())), []
    handle = model[0].register_forward_hook(lambda *_: seen.append(1))
    report = groupnorm.accelerate_(model)
    model.eval()
    model(X)
    report.undo()
    assert not any(module.training for module in model.modules())
    model(X)
    assert len(seen) == 2
    handle.remove()
    with pytest.raises(ConversionError, match="undone before"):
        report.undo()
    groupnorm.accelerate_(model.eval()).undo()
    assert not any(module.training for module in model.modules())


def test_the_text_of_the_changed_method_is_shown_in_tracebacks():
    import inspect

    model = Shared()
    groupnorm.accelerate_(model)
    text = inspect.getsource(type(model).forward)
    assert "self.conv(h)" in text
    assert "return self.act(h + x)" in text
