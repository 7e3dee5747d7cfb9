"""Norms exchanged in place and in a copy: what is kept, what is lost, and the way back."""

import copy
import functools
import io
import pickle
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

import groupnorm
from groupnorm.conversion import NothingConvertedWarning
from groupnorm.errors import ArgumentError, ConversionError, DivisibilityError
from groupnorm.nn.catalog import CATALOG

SPECS = [row.spec for row in CATALOG.values() if row.make is not None and row.spec not in ("none", "lrn", "lrn-within")]
assert SPECS[0] == "bn"
X = torch.randn(2, 3, 8, 8)


def network(norm=nn.BatchNorm2d, **options):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), norm(16, **options), nn.ReLU(), nn.Conv2d(16, 16, 3), norm(16, **options), nn.ReLU()
    )
    for module in model.modules():
        if isinstance(module, norm) and module.weight is not None:
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return model


def trained(model, optimizer, steps=2):
    for _ in range(steps):
        optimizer.zero_grad()
        (model(X) * torch.randn(2, 16, 4, 4)).sum().backward()
        optimizer.step()
    return model


def everything(model):
    """What makes a model: its text, modes, values, and which of them learn."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return (
        str(model),
        [module.training for module in model.modules()],
        {name: [t.detach().clone(), t.requires_grad, t.dtype, t.device] for name, t in tensors.items()},
    )


def assert_same(a, b):
    assert a[:2] == b[:2]
    assert a[2].keys() == b[2].keys()
    for name, (value, *facts) in a[2].items():
        assert facts == b[2][name][1:]
        assert torch.equal(value, b[2][name][0]), name


@pytest.mark.parametrize("spec", [*SPECS[1:], "ws+gn", "ws+bn", "gn:4", "gn:c2"])
def test_to_every_norm_of_the_catalog_and_back_by_undo(spec):
    model = network()
    trained(model, torch.optim.SGD(model.parameters(), 0.1))
    before = everything(model)
    scales = [model[1].weight, model[4].weight]
    sample = X if spec.startswith("ws") or spec == "cbn" else None
    plan = groupnorm.plan(model, spec, sample_input=sample)
    twin = groupnorm.convert(model, spec, sample_input=sample)
    assert_same(before, everything(model))
    report = groupnorm.convert_(model, spec, sample_input=sample)
    assert report.plan == plan
    assert str(twin) == str(model)
    assert [model[1].weight, model[4].weight] == scales  # the very parameters
    assert {"1.weight", "1.bias", "4.weight", "4.bias"} <= set(model.state_dict())
    y = model(X)
    assert y.isfinite().all()
    y.backward(torch.randn_like(y))
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    report.undo()
    for module in model.modules():
        assert not parametrize.is_parametrized(module)
    assert_same(before, everything(model))


@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec not in ("gn", "ln", "in", "cbn")])
def test_every_norm_of_the_catalog_becomes_a_group_norm(spec):
    model = groupnorm.convert(network(), spec) if spec != "bn" else network()
    report = groupnorm.convert_(model, "gn")
    assert report.counts == {"gn:8": 2}
    assert type(model[1]) is groupnorm.GroupNorm
    assert torch.equal(model[1].weight, network()[1].weight)


def test_group_norm_computes_with_the_scale_shift_and_eps_of_the_batch_norm():
    model = network(eps=0.1)
    new = groupnorm.convert(model, "gn:4")
    x = torch.randn(2, 16, 5, 5)
    torch.testing.assert_close(new[1](x), F.group_norm(x, 4, model[1].weight, model[1].bias, 0.1))


def test_dtype_device_mode_and_what_learns_are_kept():
    model = network().to(torch.bfloat16).eval()
    model[1].requires_grad_(False)
    model[4].bias.requires_grad_(False)
    new = groupnorm.convert(model)
    for place in (1, 4):
        for name in ("weight", "bias"):
            old, now = getattr(model[place], name), getattr(new[place], name)
            assert (now.dtype, now.requires_grad) == (old.dtype, old.requires_grad)
            assert torch.equal(now, old)
        assert not new[place].training
    assert groupnorm.convert(network().to("meta"))[1].weight.device.type == "meta"


@pytest.mark.parametrize("spec", ["gn", "brn", "frn", "bcn", "ln", "bn"])
def test_norms_without_scale_or_shift_stay_without(spec):
    model = network(affine=False)
    if spec == "bn":
        model = groupnorm.convert(model, "gn")
    new = groupnorm.convert(model, spec)
    assert new[1].weight is None
    assert new[1].bias is None
    lone = nn.Sequential(nn.GroupNorm(4, 16))
    lone[0].register_parameter("bias", None)
    new = groupnorm.convert(lone, "brn")
    assert new[0].weight is not None
    assert new[0].bias is None
    assert new(X.repeat(1, 6, 1, 1)[:, :16]).isfinite().all()


def test_running_statistics_go_along_to_norms_that_have_them():
    model = trained(network(momentum=0.3), torch.optim.SGD(network().parameters(), 0.1))
    mean, count = model[1].running_mean.clone(), model[1].num_batches_tracked.clone()
    report = groupnorm.convert_(model, "brn")
    assert torch.equal(model[1].running_mean, mean)
    assert torch.equal(model[1].num_batches_tracked, count)
    assert model[1].momentum == 0.3
    model(X)
    report.undo()
    assert torch.equal(model[1].running_mean, mean)
    assert torch.equal(model[1].num_batches_tracked, count)


@pytest.mark.parametrize(
    ("old", "shape", "new"),
    [
        (nn.SyncBatchNorm(4), (2, 4, 8), nn.BatchNorm1d),
        (nn.SyncBatchNorm(4), (2, 4), nn.BatchNorm1d),
        (nn.SyncBatchNorm(4), (2, 4, 3, 3), nn.BatchNorm2d),
        (nn.SyncBatchNorm(4), (2, 4, 3, 3, 3), nn.BatchNorm3d),
        (nn.GroupNorm(2, 4), (2, 4, 3, 3, 3), nn.BatchNorm3d),
        (nn.InstanceNorm3d(4), None, nn.BatchNorm3d),
        (nn.SyncBatchNorm(4), None, nn.BatchNorm2d),
    ],
)
def test_batch_norm_is_of_the_rank_of_its_input(old, shape, new):
    model = nn.Sequential(old)
    assert type(groupnorm.convert(model.eval(), "bn", sample_input=shape and torch.randn(shape))[0]) is new


def test_hooks_go_along_and_their_handles_still_remove_them():
    model, seen = network(), []
    handles = [
        model[1].register_forward_hook(lambda module, args, y: seen.append(type(module).__name__)),
        model[1].register_forward_pre_hook(lambda module, args, kwargs: seen.append("before"), with_kwargs=True),
        model[1].register_full_backward_hook(lambda module, gx, gy: seen.append("back")),
    ]
    report = groupnorm.convert_(model)
    model(X.requires_grad_()).sum().backward()
    X.requires_grad_(False)
    assert seen == ["before", "GroupNorm", "back"]
    later = model[1].register_forward_hook(lambda *_: seen.append("later"))
    seen.clear()
    model(X)
    assert seen == ["before", "GroupNorm", "later"]
    for handle in (*handles, later):
        handle.remove()
    report.undo()
    seen.clear()
    model(X)
    assert seen == []
    assert not model[1]._forward_hooks


def test_what_was_set_on_a_norm_by_hand_goes_along():
    model = network()
    model[1].note = "the first"
    assert groupnorm.convert(model)[1].note == "the first"


def test_one_module_under_several_names_stays_one():
    norm = nn.BatchNorm2d(8)
    model = nn.ModuleDict({"a": norm, "b": nn.ModuleList([norm, nn.Conv2d(8, 8, 1), norm])})
    report = groupnorm.convert_(model)
    assert model["a"] is model["b"][0] is model["b"][2]
    assert type(model["a"]) is groupnorm.GroupNorm
    assert report.replaced[0].shared == ("b.0", "b.2")
    report.undo()
    assert model["a"] is model["b"][0] is model["b"][2] is norm


def test_one_parameter_of_several_norms_stays_one():
    model = network()
    model[4].weight = model[1].weight
    new = groupnorm.convert(model)
    assert new[4].weight is new[1].weight


def test_references_outside_of_the_children_are_reported():
    model = network()
    model.norms = [model[1], model[4]]
    report = groupnorm.convert_(model)
    assert report.notes == ["norms still holds a norm that was replaced, and is no child: set it anew"]
    assert "norms still holds" in str(report)


class Double(nn.Module):
    def forward(self, weight):
        return 2 * weight


def test_parametrizations_go_along():
    model = network()
    parametrize.register_parametrization(model[1], "weight", Double())
    original = model[1].parametrizations.weight.original
    new = groupnorm.convert(model)
    assert new[1].state_dict().keys() == {"bias", "parametrizations.weight.original"}
    assert torch.equal(new[1].weight, model[1].weight)
    report = groupnorm.convert_(model)
    assert model[1].parametrizations.weight.original is original
    y = model(X)
    y.backward(torch.randn_like(y))
    assert original.grad.abs().sum() > 0
    report.undo()
    assert type(model[1].parametrizations.weight[0]) is Double


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_an_optimizer_keeps_its_parameters_with_their_state(kind):
    model = network()
    groups = [{"params": [model[1].weight, model[1].bias], "lr": 0.5}, {"params": [model[0].weight, model[4].weight]}]
    optimizer = kind(groups, lr=0.1, **({"momentum": 0.9} if kind is torch.optim.SGD else {}))
    trained(model, optimizer)
    before = copy.deepcopy(optimizer.state_dict())
    report = groupnorm.convert_(model, "gn", optimizer=optimizer)
    assert str(optimizer.state_dict()) == str(before)
    old = model[1].weight.detach().clone()
    trained(model, optimizer)
    assert not torch.equal(model[1].weight, old)
    report.undo()
    assert optimizer.param_groups[0]["params"][0] is model[1].weight


def test_optimizers_get_what_only_the_new_norm_has_and_drop_what_only_the_old_one_had():
    model = groupnorm.convert(network(), "bcn")
    named = list(model.named_parameters())
    of_all = torch.optim.SGD(named, 0.1, momentum=0.9)
    of_one = torch.optim.SGD([{"params": [model[0].weight]}, {"params": list(model[1].parameters()), "lr": 0.7}], 0.1)
    for optimizer in (of_all, of_one):
        trained(model, optimizer)
    before = copy.deepcopy(of_all.state_dict()), copy.deepcopy(of_one.state_dict())
    gone = model[1].batch_weight
    report = groupnorm.convert_(model, "evonorm-s0", optimizer=(o for o in (of_all, of_one)))
    assert not any(p is gone for o in (of_all, of_one) for group in o.param_groups for p in group["params"])
    assert gone not in of_all.state
    assert {id(p) for p in of_all.param_groups[0]["params"]} == {id(p) for p in model.parameters()}
    names = of_all.param_groups[0]["param_names"]
    assert len(names) == len(of_all.param_groups[0]["params"])
    trained(model, of_all)
    report.undo()
    assert model[1].batch_weight is gone
    for optimizer, state in zip((of_all, of_one), before, strict=True):
        assert [g["params"] for g in optimizer.state_dict()["param_groups"]] == [
            g["params"] for g in state["param_groups"]
        ]
    assert gone in of_all.state
    switched = groupnorm.convert(network(), "brn")
    optimizer = torch.optim.SGD(switched.parameters(), 0.1)
    groupnorm.convert_(switched, "sn", optimizer=optimizer)
    assert any(p is switched[1].mean_weight for p in optimizer.param_groups[0]["params"])


def test_new_parameters_without_a_group_are_told():
    model = network(affine=False)
    report = groupnorm.convert_(model, "frn", optimizer=torch.optim.SGD(model.parameters(), 0.1))
    assert report.notes[0] == (
        "1 has new parameters ['learned_eps'], and no optimizer has any of the old norm: use add_param_group()"
    )


def test_undo_gives_back_the_values_of_before_and_once():
    model = network()
    weight = model[1].weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    report = groupnorm.convert_(model, optimizer=optimizer)
    trained(model, optimizer)
    model[1].weight.requires_grad_(False)
    model.eval()
    report.undo()
    assert torch.equal(model[1].weight, weight)
    assert model[1].weight.requires_grad
    assert not model[1].training
    with pytest.raises(ConversionError, match="undone before"):
        report.undo()


@pytest.mark.parametrize("convert", [groupnorm.convert, groupnorm.convert_])
def test_nothing_to_do_is_a_warning_where_the_conversion_is_called(convert):
    nothing = "nothing was converted: the model has no norms over channels; look at the plan"
    with pytest.warns(NothingConvertedWarning, match=nothing) as caught:
        convert(nn.Sequential(nn.Conv2d(3, 8, 3)))
    assert caught[0].filename == __file__
    with pytest.warns(NothingConvertedWarning, match="0 of 1 norms become bn, 1 left alone"):
        assert "nothing replaced" in str(groupnorm.convert_(nn.Sequential(nn.BatchNorm2d(8)), "bn"))


def test_a_model_that_is_a_norm_is_converted_as_a_copy():
    new = groupnorm.convert(nn.BatchNorm2d(8), "gn:2")
    assert repr(new) == repr(groupnorm.GroupNorm(2, 8))
    with pytest.raises(ConversionError, match=r"cannot be exchanged in place.*use convert\(\)"):
        groupnorm.convert_(nn.BatchNorm2d(8))


def test_an_edited_plan_is_carried_out():
    model = network()
    plan = groupnorm.plan(model)
    plan["1"].number, plan["4"].action = 2, "skip"
    new = groupnorm.convert(model, plan)
    assert new[1].num_groups == 2
    assert type(new[4]) is nn.BatchNorm2d
    plan["1"].number = 3
    with pytest.raises(DivisibilityError, match="num_channels=16 cannot be divided by num_groups=3"):
        groupnorm.convert(model, plan)


def test_a_plan_of_another_model_is_refused():
    model = network()
    plan = groupnorm.plan(model)
    other = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    with pytest.raises(ConversionError, match=r"the plan has BatchNorm2d\(16\) at '1', and the model BatchNorm2d\(8"):
        groupnorm.convert_(other, plan)
    tied = network()
    tied[4] = tied[1]
    with pytest.raises(ConversionError, match="expected the model that was planned for"):
        groupnorm.convert_(tied, plan)
    with pytest.raises(ArgumentError, match="a plan and groups= or where="):
        groupnorm.convert(model, plan, groups=4)


def test_a_failure_half_way_leaves_the_model_as_it_was(monkeypatch):
    model = network()
    before = everything(model)
    done = []

    def failing(*arguments):
        if done:
            raise RuntimeError("half way")
        done.append(1)
        return build(*arguments)

    module = sys.modules["groupnorm.conversion.convert"]
    build = module.build
    monkeypatch.setattr(module, "build", failing)
    with pytest.raises(RuntimeError, match="half way"):
        groupnorm.convert_(model)
    assert_same(before, everything(model))


def test_what_cannot_be_copied_is_told():
    model = network()
    model.lock = io.TextIOWrapper(io.BytesIO())
    with pytest.raises(ConversionError, match=r"cannot be copied.*use convert_\(\)"):
        groupnorm.convert(model)


@pytest.mark.parametrize("name", ["BatchNormAct2d", "GroupNormAct", "FrozenBatchNormAct2d"])
@pytest.mark.parametrize("spec", ["gn:4", "brn", "frn"])
def test_activation_and_drop_of_timms_layers_are_kept(name, spec):
    import timm.layers.norm_act as norms

    options = {"num_groups": 8} if name == "GroupNormAct" else {}
    old = getattr(norms, name)(16, act_layer=nn.SiLU, drop_layer=nn.Dropout, **options)
    model = nn.Sequential(old).eval()
    new = groupnorm.convert(model, spec)
    assert type(new[0].act) is nn.SiLU
    assert type(new[0].drop) is nn.Dropout
    assert set(new.state_dict()) >= {"0.weight", "0.bias"}
    alone = groupnorm.convert(nn.Sequential(nn.BatchNorm2d(16)).eval(), spec)
    x = torch.randn(2, 16, 4, 4)
    assert torch.equal(new(x), F.silu(alone(x)))
    assert isinstance(new[0], type(alone[0]))
    assert new[0].weight.requires_grad is (name != "FrozenBatchNormAct2d")
    for twin in (copy.deepcopy(new), pickle.loads(pickle.dumps(new))):
        assert torch.equal(twin(x), new(x))
        assert type(twin[0]) is type(new[0])
    again = groupnorm.convert(new, "gn:2")
    assert type(again[0].act) is nn.SiLU
    assert again[0].num_groups == 2


def test_the_activation_of_a_group_norm_is_kept():
    model = nn.Sequential(groupnorm.GroupNorm(4, 16, activation="silu"))
    x = torch.randn(2, 16, 4, 4)
    torch.testing.assert_close(groupnorm.convert(model, "gn:2")(x), F.silu(F.group_norm(x, 2)))
    as_batch_norm = groupnorm.convert(model, "bn").eval()
    torch.testing.assert_close(as_batch_norm(x), F.silu(F.batch_norm(x, torch.zeros(16), torch.ones(16))))


def test_norms_with_an_activation_of_their_own_lose_it_and_the_plan_says_so():
    model = nn.Sequential(groupnorm.nn.FilterResponseNorm(16, learn_eps=True))
    assert groupnorm.plan(model)["0"].lost == ("tau", "learned_eps", "its own activation")


def test_frozen_batch_norms_of_torchvision_become_group_norms_that_do_not_learn():
    from torchvision.ops import FrozenBatchNorm2d

    old = FrozenBatchNorm2d(16)
    old.weight.normal_()
    new = groupnorm.convert(nn.Sequential(old))
    assert torch.equal(new[0].weight, old.weight)
    assert not any(p.requires_grad for p in new.parameters())


@pytest.mark.parametrize("spec", ["gn", "brn"])
def test_a_converted_model_compiles_and_exports(spec):
    import timm.layers.norm_act as norms

    model = groupnorm.convert(nn.Sequential(nn.Conv2d(3, 16, 3), norms.BatchNormAct2d(16)), spec).eval()
    expected = model(X)
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(X), expected)
    torch.testing.assert_close(torch.export.export(model, (X,)).module()(X), expected)


class Shares(nn.Module):
    """A network whose copy shares a part with it."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16))

    def __deepcopy__(self, memo):
        new = Shares()
        new.body = self.body
        return new


class Single(nn.Sequential):
    """A network that is its own copy."""

    def __deepcopy__(self, memo):
        return self


def with_closure():
    model = nn.Sequential(network())
    old = model[0].forward
    model[0].forward = lambda x: old(x) * 2
    return model


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (Shares, "body is a module of the original"),
        (lambda: Single(*network()), "it is a module of the original"),
        (lambda: nn.Sequential(nn.ReLU(), Shares()), "1.body is a module"),
        (with_closure, "0 has a forward that calls a module of the original"),
    ],
)
def test_a_copy_that_shares_modules_is_refused_and_the_original_stays(make, what):
    model = make()
    kinds = [type(module) for module in model.modules()]
    with pytest.raises(ConversionError, match=rf"is not its own: {what}.*use convert_\(\), which works in place"):
        groupnorm.convert(model, "gn")
    assert [type(module) for module in model.modules()] == kinds
    report = groupnorm.convert_(model, "gn")
    assert len(report.replaced) == sum(kind is nn.BatchNorm2d for kind in kinds)


def twice(module, x):
    return type(module).forward(module, x) * 2


def test_a_forward_that_is_copied_with_its_module_is_no_trouble():
    model = nn.Sequential(network())
    model[0].forward = functools.partial(twice, model[0])
    new = groupnorm.convert(model, "gn")
    assert type(new[0][1]) is groupnorm.GroupNorm
    assert new[0].forward.args[0] is new[0]


def test_a_copy_that_still_holds_its_old_norms_is_a_warning():
    model = network()
    model.stages = [[model[1]]]
    with pytest.warns(UserWarning, match="stages still holds a norm that was replaced, and is no child") as caught:
        groupnorm.convert(model, "gn")
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("spec", "count"), [("frn", 2), ("bcn", 4), ("sn", 4), ("evonorm-s0", 0), ("pn", 0), ("gn", 0)]
)
def test_new_parameters_are_counted(spec, count):
    plan = groupnorm.plan(network(), spec)
    assert ("new parameters" in plan.summary) == bool(count)
    report = groupnorm.convert_(network(), spec)
    assert report.notes == (
        [f"adds {count} parameters, which no optimizer of before trains: pass optimizer="] if count else []
    )
    if count:
        assert f"; {count} new parameters" in plan.summary
        assert "pass optimizer=" in str(report)
    model = network()
    report = groupnorm.convert_(model, spec, optimizer=torch.optim.SGD(model.parameters(), 0.1))
    assert report.notes == []
    without = network(affine=False)
    names = {name for name, _ in without.named_parameters()}
    added = sum(len(row.added) for row in groupnorm.plan(without, spec).rows)
    groupnorm.convert_(without, spec)
    assert added == len({name for name, _ in without.named_parameters()} - names)


@pytest.mark.parametrize("spec", ["gn", "ln", "in"])
def test_group_norms_are_made_with_a_backend(spec):
    new = groupnorm.convert(network(), spec, backend="native")
    assert {new[place].backend for place in (1, 4)} == {"native"}
    exported = torch.export.export(new.eval(), (X,))
    assert not any("groupnorm" in str(node.target) for node in exported.graph.nodes)
    model = network()
    groupnorm.convert_(model, groupnorm.plan(model, spec), backend="native")
    assert model[1].backend == "native"
    other = "gn:2" if spec != "gn" else "ln"
    assert groupnorm.convert(new, other)[1].backend == "native"
    assert groupnorm.convert(network(), spec)[1].backend == "auto"
    assert groupnorm.convert(new, other, backend="auto")[1].backend == "auto"
    groupnorm.convert(network(), "brn", backend="native")
    model = network()
    with pytest.raises(ArgumentError, match="unknown backend 'onnx'; expected one of: auto"):
        groupnorm.convert_(model, spec, backend="onnx")
    assert type(model[1]) is nn.BatchNorm2d


GLOBAL = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
CALLED = GLOBAL.forward


def test_a_forward_that_names_the_original_as_a_variable_of_its_file_is_refused():
    outer = nn.Sequential(GLOBAL)
    outer.forward = lambda x: CALLED(x) * 2
    with pytest.raises(ConversionError, match="has a forward that calls a module of the original"):
        groupnorm.convert(outer, "gn")
    outer.forward = lambda x: (lambda: CALLED(x) * 2)()
    with pytest.raises(ConversionError, match="has a forward that calls a module of the original"):
        groupnorm.convert(outer, "gn")


def test_a_hook_that_holds_a_module_of_the_original_is_a_warning():
    model = network()
    model.register_forward_hook(lambda module, inputs, output, norm=model[1]: norm(inputs[0]))
    with pytest.warns(UserWarning, match="_forward_hooks of the model hold a module of the original") as caught:
        groupnorm.convert(model, "gn")
    assert caught[0].filename == __file__
    model = network()
    model.register_forward_hook(lambda module, inputs, output: output)
    model[1].register_forward_pre_hook(print)
    groupnorm.convert(model, "gn")  # and no warning


def test_one_is_one_in_words():
    model = nn.Sequential(nn.BatchNorm2d(8), nn.BatchNorm2d(8))
    plan = groupnorm.plan(model, "frn", where="0")
    assert str(plan).endswith("1 more norm, not selected by where=")
    assert "; 1 new parameter" in plan.summary
    assert groupnorm.convert_(model, plan).notes[0].startswith("adds 1 parameter, which")
