"""Group norms exchanged for ours, with the activations after them: real networks, norms, plans, and the way back."""

import copy
import json
import sys

import pytest
import timm
import torch
import torchvision
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel
from torch import nn
from torch.nn.utils import parametrize, prune

import groupnorm
from conversion.acceleration import X, accelerated, activated, gn, left
from groupnorm.conversion import NothingConvertedWarning, Plan
from groupnorm.conversion.followed import follow_
from groupnorm.errors import ArgumentError, ConversionError

IMAGE = torch.randn(2, 3, 16, 16)
STEP = torch.tensor([1, 7])
DECORATED = "UNet2DConditionModel.forward is decorated, or cannot be read as text"
NOTHING = "no ReLU, SiLU or GELU follows it"


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


@pytest.mark.filterwarnings("ignore")  # of the libraries
@pytest.mark.parametrize(
    ("make", "inputs", "count", "reasons"),
    [
        (lambda: torchvision.models.resnet50(norm_layer=lambda c: nn.GroupNorm(32, c)), (IMAGE,), 33, 20 * [NOTHING]),
        (lambda: torchvision.models.resnet18(norm_layer=lambda c: nn.GroupNorm(32, c)), (IMAGE,), 9, 11 * [NOTHING]),
        (vae, (IMAGE,), 22, 2 * [NOTHING]),
        (unet, (IMAGE, STEP), 25, 6 * [NOTHING]),
        (lambda: unet(resnet_time_scale_shift="scale_shift"), (IMAGE, STEP), 13, 5 * [NOTHING]),
        (conditional, (torch.randn(2, 4, 16, 16), STEP, torch.randn(2, 5, 16)), 24, [*6 * [NOTHING], DECORATED]),
        (lambda: timm.create_model("resnet50_gn"), (IMAGE,), 33, 20 * [NOTHING]),
        (lambda: timm.create_model("resnetv2_50x1_bit", num_classes=5), (IMAGE,), 49, []),
    ],
    ids=["resnet50", "resnet18", "vae", "unet", "unet-scale-shift", "unet-conditional", "timm-resnet50", "timm-bit"],
)
def test_a_real_network(make, inputs, count, reasons):
    torch.manual_seed(0)
    plan, seen = accelerated(make(), *inputs)
    assert len(seen) == count
    assert sorted(left(plan)) == sorted(reasons)
    assert not plan.of("refuse")


@pytest.mark.filterwarnings("ignore")
def test_a_vae_in_half_precision_and_channels_last_under_autocast_errs_by_no_more():
    model = vae().eval().to(memory_format=torch.channels_last)
    x = IMAGE.to(memory_format=torch.channels_last)

    with torch.no_grad():
        exact = model.double()(x.double()).sample
    model.float()

    def errors():
        """Of a run under autocast, and of one in half precision."""
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            mixed, half = model(x).sample, model.to(torch.bfloat16)(x.bfloat16()).sample
        assert mixed.dtype == half.dtype == torch.bfloat16
        model.float()
        return torch.stack([(y.double() - exact).square().mean().sqrt() for y in (mixed, half)])

    before = errors()
    state = copy.deepcopy(model.state_dict())
    report = groupnorm.accelerate_(model)
    model.load_state_dict(state)
    assert report.counts == {"gn+silu:32": 22, "gn:32": 2}
    assert (errors() < 1.2 * before).all()  # one rounding less a norm, but the roundings are others


@pytest.mark.filterwarnings("ignore")
def test_another_model_made_from_an_accelerated_class_is_what_it_was():
    model = unet().eval()
    expected = model(IMAGE, STEP).sample
    groupnorm.accelerate_(model)
    twin = type(model).from_config(model.config).eval()
    twin.load_state_dict(model.state_dict())
    torch.testing.assert_close(twin(IMAGE, STEP).sample, expected)


def test_norms_of_timm_take_over_their_own_activation():
    from timm.layers.norm_act import GroupNormAct

    model = nn.Sequential(
        GroupNormAct(8, 4), GroupNormAct(8, 4, act_layer=nn.SiLU), GroupNormAct(8, 4, drop_layer=nn.Dropout),
        GroupNormAct(8, 4, apply_act=False), nn.GELU("tanh"), GroupNormAct(8, 4, act_layer=nn.Mish),
    )  # fmt: skip
    plan, seen = accelerated(model, X)
    assert [row.new for row in plan.rows] == ["gn+relu", "gn+silu", "gn", "gn+gelu_tanh", "gn"]
    assert seen == ["relu", "silu", "gelu_tanh"]
    assert left(plan) == ["its own drop and act stay", "its own act stay"]
    both = follow_(groupnorm.GroupNorm(4, 8), [("act", nn.ReLU()), ("drop", nn.Dropout())])
    plan, _ = accelerated(nn.Sequential(both), X)
    assert left(plan) == ["is groupnorm.GroupNorm already; its own act and drop stay"]


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
    plan, seen = accelerated(model, X)
    assert [row.action for row in plan.rows] == ["replace", "skip", "replace", "skip", "skip", "replace"]
    assert [row.why for row in plan.of("skip")] == [
        "what the forward of Strange does is not known", f"is groupnorm.GroupNorm already; {NOTHING}",
        "is groupnorm.GroupNorm already; has an activation",
    ]  # fmt: skip
    assert seen == ["silu", "silu", "relu", "relu"]  # the first of the last two is the norm's own


def test_a_pruned_norm_stays():
    model = nn.Sequential(gn(), nn.ReLU())
    prune.l1_unstructured(model[0], "weight", 0.5)
    plan, _ = accelerated(model, X)
    assert left(plan) == ["it has weight_mask, weight_orig besides, as of pruning or weight norm"]


def test_empty_batches_stay_what_they_are_in_torch():
    model = nn.Sequential(gn(), nn.SiLU())
    groupnorm.accelerate_(model)
    assert model(torch.empty(0, 8, 6, 6)).shape == (0, 8, 6, 6)


def sequence():
    return nn.Sequential(gn(), nn.SiLU(), gn(), nn.ReLU())


def test_a_plan_can_be_kept_edited_and_applied():
    model = sequence()
    plan = groupnorm.accelerate_.plan(model)
    assert "2 of 2 norms become groupnorm.GroupNorm" in str(plan)
    assert "takes over 1" in str(plan)
    assert plan.__rich__().row_count == 2
    plan = Plan.from_json(json.dumps(json.loads(plan.to_json())))
    assert plan == groupnorm.accelerate_.plan(model)
    plan["0"].new = "gn"
    expected = model(X)
    report = groupnorm.accelerate_(model, plan)
    assert report.counts == {"gn:4": 1, "gn+relu:4": 1}
    assert report.plan["0"].why == "leaves the activation alone, as asked; otherwise takes over 1"
    assert activated(model, X) == ["relu"]
    again = groupnorm.accelerate_(model)
    assert again.plan["2"].why == "is groupnorm.GroupNorm already; takes over 3 already"
    assert activated(model, X) == ["silu", "relu"]
    torch.testing.assert_close(model(X), expected)
    again.undo()
    assert activated(model, X) == ["relu"]
    report.undo()
    plan["0"].action = plan["2"].action = "skip"
    with pytest.warns(NothingConvertedWarning, match=r"0 of 2 norms .* \(is skipped, as asked\)"):
        groupnorm.accelerate_(model, plan)
    assert type(model[0]) is nn.GroupNorm
    assert type(model) is nn.Sequential


def test_a_plan_cannot_ask_for_what_cannot_be():
    model = nn.Sequential(gn(), nn.Mish())
    plan = groupnorm.accelerate_.plan(model)
    plan["0"].new = "gn+silu"
    with pytest.raises(ConversionError, match=r"gn\+silu:4 at '0', which can only be replace gn:4 \(no ReLU"):
        groupnorm.accelerate_(model, plan)
    plan["0"].new, plan["0"].number = "gn", 2
    with pytest.raises(ConversionError, match="gn:2 at '0', which can only be replace gn:4"):
        groupnorm.accelerate_(model, plan)
    with pytest.raises(ConversionError, match=r"the plan has GroupNorm\(4, 8\) at '0', and the model nothing"):
        groupnorm.accelerate_(nn.ModuleDict({"a": gn()}), plan)
    plan["0"].action = "skipp"
    with pytest.raises(ConversionError, match=r"action='skipp'; expected .* did you mean 'skip'\?"):
        groupnorm.accelerate_(model, plan)
    with pytest.raises(AttributeError, match="nwe"):
        plan["0"].nwe = "gn"
    with pytest.raises(ArgumentError, match=r"plan='gn'; expected groupnorm\.accelerate_\.plan\(model\)"):
        groupnorm.accelerate_(model, "gn")


def test_nothing_to_do_is_a_warning_and_a_wrapped_model_an_error():
    with pytest.warns(NothingConvertedWarning, match=r"no torch\.nn\.GroupNorm; for one with batch norms"):
        assert groupnorm.accelerate_(nn.Sequential(nn.Conv2d(3, 8, 3))).counts == {}
    with pytest.warns(NothingConvertedWarning, match=r"0 of 1 norms .* \(the model itself is the norm, which cannot"):
        assert "the model itself" in groupnorm.accelerate_(gn()).plan[""].why
    with pytest.raises(ConversionError, match="wrap it afterwards"):
        groupnorm.accelerate_(nn.DataParallel(nn.Sequential(gn())))


def test_a_failure_half_way_leaves_the_model_as_it_was(monkeypatch):
    class Stubborn(nn.Sequential):
        pass

    model = nn.ModuleList([sequence(), Stubborn(gn(), nn.SiLU())])
    before, classes = str(model), [type(module) for module in model.modules()]
    accelerate = sys.modules["groupnorm.conversion.accelerate"]
    plan, real = groupnorm.accelerate_.plan(model), accelerate.rewritten

    def fail(module, names):
        if len(fail.calls) > 2 and isinstance(module, Stubborn):
            raise RuntimeError("half way")
        fail.calls.append(module)
        return real(module, names)

    fail.calls = []
    monkeypatch.setattr(accelerate, "rewritten", fail)
    with pytest.raises(RuntimeError, match="half way"):
        groupnorm.accelerate_(model, plan)
    assert (str(model), [type(module) for module in model.modules()]) == (before, classes)


def test_norms_held_elsewhere_are_told_and_keep_their_results():
    model = sequence()
    model.held = [model[0]]
    expected = model.held[0](X)
    report = groupnorm.accelerate_(model)
    assert report.notes == ["held still holds a norm that was replaced, and is no child: set it anew"]
    torch.testing.assert_close(model.held[0](X), expected)


def test_undo_keeps_what_was_learned_since_and_modes_and_hooks():
    model, seen = sequence(), []
    handle = model.register_forward_hook(lambda *_: seen.append(1))
    report = groupnorm.accelerate_(model)
    model.eval()
    with torch.no_grad():
        model[0].weight.fill_(3)
    y = model(X)
    report.undo()
    assert torch.equal(model[0].weight, torch.full((8,), 3.0))
    assert not any(module.training for module in model.modules())
    torch.testing.assert_close(model(X), y)
    assert len(seen) == 2
    handle.remove()
    with pytest.raises(ConversionError, match="undone before"):
        report.undo()


def test_undo_between_forward_and_backward_changes_no_gradient():
    model = sequence()
    expected = torch.autograd.grad(model(X).square().mean(), list(model.parameters()))
    report = groupnorm.accelerate_(model)
    loss = model(X).square().mean()
    report.undo()
    torch.testing.assert_close(torch.autograd.grad(loss, list(model.parameters())), expected)


def test_of_several_conversions_the_last_is_undone_first():
    model = sequence()
    first = groupnorm.accelerate_(model)
    second = groupnorm.convert_(model, "gn:2")
    with pytest.raises(ConversionError, match="undo the later conversion first"):
        first.undo()
    second.undo()
    first.undo()
    assert str(model) == str(sequence())
    assert type(model) is nn.Sequential
