"""Random trees of modules with ties, hooks, dtypes and frozen parts: what a conversion promises of any model."""

import copy
import warnings

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import groupnorm
from groupnorm.conversion import NothingConvertedWarning
from groupnorm.nn.factory import parse

CHANNELS = st.sampled_from([1, 2, 6, 8, 17, 32])
LEAVES = st.one_of(
    CHANNELS.map(nn.BatchNorm2d),
    CHANNELS.map(lambda c: nn.BatchNorm1d(c, affine=False)),
    CHANNELS.map(lambda c: nn.BatchNorm3d(c, track_running_stats=False, eps=0.1)),
    CHANNELS.map(nn.SyncBatchNorm),
    CHANNELS.map(lambda c: nn.InstanceNorm2d(c, affine=True)),
    CHANNELS.map(lambda c: nn.GroupNorm(1, c)),
    CHANNELS.map(lambda c: groupnorm.GroupNorm(c, c, activation="relu")),
    st.just(0).map(lambda _: nn.Linear(3, 3)),
    st.just(0).map(lambda _: nn.LayerNorm(3)),
)


def named(modules):
    return nn.ModuleDict({str(number): module for number, module in enumerate(modules)})


TREES = st.recursive(
    LEAVES,
    lambda children: st.one_of(
        st.lists(children, max_size=3).map(lambda modules: nn.Sequential(*modules)),
        st.lists(children, min_size=1, max_size=3).map(named),
        children.map(lambda module: nn.ModuleList([module, module])),  # a tie
    ),
    max_leaves=8,
)


def hook(module, inputs, output):
    return None


@st.composite
def models(draw):
    """A tree of random modules in random states, within a container."""
    model = nn.Sequential(draw(TREES), draw(TREES))
    for module in list(model.modules()):
        if draw(st.booleans()):
            module.register_forward_hook(hook)
        if draw(st.booleans()):
            module.eval()
        if draw(st.booleans()) and not list(module.children()):
            module.to(draw(st.sampled_from([torch.float64, torch.bfloat16])))
        for parameter in module.parameters(recurse=False):
            nn.init.normal_(parameter)
            parameter.requires_grad_(draw(st.booleans()))
    norms = [module for module in model.modules() if getattr(module, "weight", None) is not None]
    if len(norms) > 1 and draw(st.booleans()) and norms[0].weight.shape == norms[-1].weight.shape:
        norms[-1].weight = norms[0].weight
    return model


def state(model):
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: (id(t), t.detach().clone(), t.requires_grad) for name, t in tensors}


@settings(max_examples=100, deadline=None)
@given(models(), st.sampled_from(["gn", "ln", "bn", "brn", "frn", "bcn", "gn:4", "sn"]))
def test_a_conversion_keeps_its_promises(model, to):
    before, text = state(model), str(model)
    kinds = {path: type(module) for path, module in model.named_modules(remove_duplicate=False)}
    modes = {path: module.training for path, module in model.named_modules()}
    optimizer = torch.optim.SGD([*model.parameters(), nn.Parameter(torch.zeros(1))], 0.1)
    plan = groupnorm.plan(model, to)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NothingConvertedWarning)
        twin = groupnorm.convert(model, to)
        assert str(model) == text
        report = groupnorm.convert_(model, to, optimizer=optimizer)
    assert report.plan == plan
    assert str(twin) == str(model)
    target = parse(to).row.layer if to != "bn" else _BatchNorm
    for row in plan.rows:
        module = model.get_submodule(row.path)
        assert isinstance(module, target) if row.action == "replace" else type(module) is kinds[row.path]
        assert all(model.get_submodule(path) is module for path in row.shared)
    # Every name, value and tie of scale and shift is kept, and everything of other modules.
    after = state(model)
    replaced = [path for row in plan.of("replace") for path in (row.path, *row.shared)]
    for name, (key, value, learns) in before.items():
        parent, _, last = name.rpartition(".")
        if parent not in replaced or last in ("weight", "bias"):
            assert after[name][0] == key
            assert torch.equal(after[name][1], value)
            assert after[name][2] == learns
    now = dict(model.named_modules())
    assert {path: now[path].training for path in modes} == modes
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    strays = [name.rpartition(".") for name, p in model.named_parameters() if id(p) not in owned]
    assert all(any(path in note and name in note for note in report.notes) for path, _, name in strays)
    report.undo()
    assert str(model) == text
    again = state(model)
    assert again.keys() == before.keys()
    for name, (key, value, learns) in before.items():
        assert again[name][0] == key
        assert torch.equal(again[name][1], value)
        assert again[name][2] == learns
    assert {path: type(module) for path, module in model.named_modules(remove_duplicate=False)} == kinds


@settings(max_examples=50, deadline=None)
@given(models())
def test_to_group_norm_and_back_to_batch_norm_keeps_scale_and_shift(model):
    original = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NothingConvertedWarning)
        back = groupnorm.convert(groupnorm.convert(model, "gn"), "bn")
    state = back.state_dict()
    for name, value in original.state_dict().items():
        if name.rpartition(".")[2] in ("weight", "bias"):
            assert torch.equal(state[name], value)
