"""Modules exchanged with all that hangs on them: hooks of every kind, optimisers, and what still holds the old one."""

import copy
import functools
import gc
import weakref
from collections import deque
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import groupnorm
from groupnorm.conversion.surgery import held_by, references
from groupnorm.errors import ConversionError

X = torch.randn(2, 3, 8, 8)


def network(norm=nn.BatchNorm2d):
    return nn.Sequential(nn.Conv2d(3, 8, 3), norm(8) if norm is nn.BatchNorm2d else norm(4, 8), nn.ReLU())


def hooked(norm, ran, backward):
    """Register a hook of every kind that torch has, each of which notes its name and the class of its module."""

    def note(name):
        return lambda module, *rest, **options: ran.append((name, type(module).__name__))

    def note_load(name):  # torch gives some of them the module and some not
        return lambda *rest: ran.append((name, type(rest[0]).__name__))

    return [
        norm.register_forward_pre_hook(note("before")),
        norm.register_forward_pre_hook(note("before with options"), with_kwargs=True),
        norm.register_forward_hook(note("after")),
        norm.register_forward_hook(note("after with options"), with_kwargs=True),
        norm.register_forward_hook(note("always"), always_call=True),
        norm.register_full_backward_pre_hook(note("before backward")),
        getattr(norm, backward)(note("backward")),
        norm.register_state_dict_pre_hook(note("before saving")),
        norm._register_state_dict_hook(note("saving")),
        norm.register_state_dict_post_hook(note("saved")),
        norm.register_load_state_dict_pre_hook(note_load("before loading")),
        norm._register_load_state_dict_pre_hook(note_load("before loading, without its module")),
        norm.register_load_state_dict_post_hook(note("loaded")),
    ]


NAMES = 13


def run(model, ran):
    """The names of the hooks that run in a step of training and in saving and loading, and the classes they see."""
    gc.collect()
    ran.clear()
    model(X.clone().requires_grad_()).square().sum().backward()
    model.load_state_dict(model.state_dict())
    return dict(ran)


def convert_(model):
    return groupnorm.convert_(model, "gn")


@pytest.mark.filterwarnings("ignore:Full backward hook|Using a non-full backward hook:FutureWarning")
@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
@pytest.mark.parametrize("backward", ["register_full_backward_hook", "register_backward_hook"])
@pytest.mark.parametrize(("norm", "change"), [(nn.BatchNorm2d, convert_), (nn.GroupNorm, groupnorm.accelerate_)])
@pytest.mark.parametrize("when", ["before", "between"])
def test_hooks_of_every_kind_see_the_module_that_is_there(norm, change, when, backward):
    model, ran = network(norm), []
    old = norm.__name__
    handles = hooked(model[1], ran, backward) if when == "before" else []
    report = change(model)
    if when == "between":
        handles = hooked(model[1], ran, backward)
    now = run(model, ran)
    assert len(now) == NAMES
    assert {kind for name, kind in now.items() if name != "before loading, without its module"} == {"GroupNorm"}
    report.undo()
    again = run(model, ran)
    assert len(again) == NAMES
    assert {kind for name, kind in again.items() if name != "before loading, without its module"} == {old}
    for handle in handles:
        handle.remove()
    report = change(model)
    assert run(model, ran) == {}
    report.undo()
    assert run(model, ran) == {}


def test_a_hook_that_is_given_its_module_survives_a_copy():
    model, ran = network(), []
    model[1].register_load_state_dict_pre_hook(lambda module, *rest: ran.append(type(module)))
    new = groupnorm.convert(model, "gn")
    gc.collect()
    new.load_state_dict(new.state_dict())
    assert ran == [groupnorm.GroupNorm]
    model.load_state_dict(model.state_dict())
    assert ran[1:] == [nn.BatchNorm2d]


OPTIMIZERS = [
    lambda parameters: torch.optim.SGD(parameters, 0.1, momentum=0.9),
    lambda parameters: torch.optim.Adam(parameters, 0.1),
    lambda parameters: torch.optim.RMSprop(parameters, 0.1),
]


def changed_by_state_dict(optimizer):
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def changed_by_pickle(optimizer):
    optimizer.__setstate__({"state": optimizer.state, "param_groups": [{**group} for group in optimizer.param_groups]})


def numbers(optimizer):
    return [[id(p) for p in group["params"]] for group in optimizer.param_groups]


@pytest.mark.parametrize("change", [lambda optimizer: None, changed_by_state_dict, changed_by_pickle])
@pytest.mark.parametrize("make", OPTIMIZERS)
@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("spec", ["gn", "sn"])
def test_undo_finds_the_groups_that_an_optimizer_has_by_then(spec, named, make, change):
    model = groupnorm.convert(network(), "bcn")
    parts = [list(model[0].named_parameters()), list(model[1].named_parameters())]
    optimizer = make([{"params": part if named else [p for _, p in part]} for part in parts])
    for group, part in zip(optimizer.param_groups, parts, strict=True):
        assert group.get("param_names", [name for name, _ in part]) == [name for name, _ in part]
    model(X).square().sum().backward()
    optimizer.step()
    before, gone = numbers(optimizer), model[1].batch_weight
    names = [list(group.get("param_names", ())) for group in optimizer.param_groups]
    state = {name: value.clone() for name, value in optimizer.state[gone].items() if torch.is_tensor(value)}
    report = groupnorm.convert_(model, spec, optimizer=optimizer)
    model(X).square().sum().backward()
    optimizer.step()
    change(optimizer)
    late = nn.Parameter(torch.ones(2))
    extra = nn.Parameter(torch.ones(1))
    optimizer.add_param_group({"params": [("late", extra)] if named else [extra]})
    optimizer.param_groups[1]["params"].append(late)
    if named:
        optimizer.param_groups[1]["param_names"].append("late too")
    report.undo()
    assert numbers(optimizer)[:2] == [before[0], [*before[1], id(late)]]
    assert len(optimizer.param_groups) == 3
    if named:
        now = [group["param_names"] for group in optimizer.param_groups]
        assert now == [names[0], [*names[1], "late too"], ["late"]]
    assert all(torch.equal(optimizer.state[gone][name], value) for name, value in state.items())
    assert state
    held = {id(p) for p in model.parameters()} | {id(late), id(optimizer.param_groups[2]["params"][0])}
    assert {id(p) for p in optimizer.state} <= held
    value = gone.detach().clone()
    model(X).square().sum().backward()
    optimizer.step()
    assert not torch.equal(gone, value)


def test_groups_that_have_gone_stop_an_undo_before_anything_is_changed():
    model = groupnorm.convert(network(), "bcn")
    optimizer = torch.optim.SGD([{"params": model[0].parameters()}, {"params": model[1].parameters()}], 0.1)
    report = groupnorm.convert_(model, "gn", optimizer=optimizer)
    del optimizer.param_groups[1]
    with pytest.raises(ConversionError, match="the optimizer has 1 parameter groups, and had 2 at this conversion"):
        report.undo()
    assert type(model[1]) is groupnorm.GroupNorm


def test_a_parameter_that_other_modules_have_too_stays_in_the_optimizer():
    model = groupnorm.convert(nn.Sequential(*network(), *network()[1:]), "bcn")
    model[3].batch_weight = model[1].batch_weight
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    groupnorm.convert_(model, "gn", where="1", optimizer=optimizer)
    assert any(p is model[3].batch_weight for p in optimizer.param_groups[0]["params"])
    groupnorm.convert_(model, "gn", optimizer=optimizer)
    assert len(optimizer.param_groups[0]["params"]) == len(list(model.parameters()))


def test_an_optimizer_that_holds_the_list_of_its_parameters_follows():
    model = network()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=1)
    groupnorm.convert_(model, "frn", optimizer=optimizer)
    before = model[1].learned_eps.detach().clone()

    def closure():
        optimizer.zero_grad()
        loss = model(X).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert not torch.equal(model[1].learned_eps, before)


def closure_of(norm):
    return lambda x: norm(x)


def default_of(norm):
    return lambda x, *, inner=norm: inner(x)


@dataclass
class Holder:
    norm: object

    def give(self):
        return self.norm


class Slotted:
    __slots__ = ("norm",)

    def __init__(self, norm):
        self.norm = norm


def nested_closure_of(norm):
    inner = closure_of(norm)
    return lambda x: inner(x)


@pytest.mark.parametrize(
    "hold",
    [
        lambda norm: norm,
        lambda norm: [norm],
        lambda norm: [[norm]],
        lambda norm: {"a": [norm]},
        lambda norm: {"a": {"b": (norm,)}},
        lambda norm: {norm: 1},
        lambda norm: frozenset({norm}),
        lambda norm: deque([[norm]]),
        lambda norm: norm.forward,
        closure_of,
        default_of,
        nested_closure_of,
        lambda norm: functools.partial(closure_of(norm), 1),
        lambda norm: SimpleNamespace(norm=norm),
        lambda norm: Holder(norm),
        lambda norm: Holder([Slotted(norm)]),
        lambda norm: iter([norm]),
        lambda norm: iter((norm,)),
        lambda norm: enumerate([norm]),
        lambda norm: (n for n in [norm]),
        lambda norm: {"a": norm}.values(),
        lambda norm: weakref.ref(norm),
        lambda norm: weakref.WeakSet([norm]),
        lambda norm: Holder(norm).give,
        lambda norm: functools.partial(print, key=norm),
    ],
)
def test_what_holds_a_norm_is_named_however_deep(hold):
    model = network()
    nn.Module.__setattr__(model[2], "inplace", hold(model[1]))
    if isinstance(hold(model[1]), nn.Module):
        del model[2].inplace
        vars(model[2])["inplace"] = model[1]
    assert references(model, [model[1]]) == ["2.inplace"]
    assert references(model, [model[0]]) == []


def test_what_holds_itself_or_nothing_yet_is_no_trouble():
    loop = []
    loop.append(loop)

    def unset():
        return later

    assert held_by(loop) == []
    assert held_by(unset) == []
    later = nn.ReLU()
    assert held_by(unset) == [later]
