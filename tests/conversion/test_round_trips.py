"""Random networks converted, loaded, trained, saved and taken back: the very modules, parameters, hooks, optimizers.

``GROUPNORM_ROUND_TRIPS=5000 pytest tests/conversion/test_round_trips.py`` tries other networks for some minutes.
"""

import copy
import gc
import os
import random
import sys

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import groupnorm
from groupnorm import norm_layer
from groupnorm.conversion.surgery import references
from groupnorm.errors import GroupNormError

COUNT = int(os.environ.get("GROUPNORM_ROUND_TRIPS", "0"))
SEEDS = [random.SystemRandom().getrandbits(32) for _ in range(COUNT)] or list(range(20))
C = 4
OWN = ["gn:2", "ln", "brn", "frn", "bcn:2", "sn", "pn", "evonorm-s0:2", "evonorm-b0", "frozen"]
SPECS = ["gn", "gn:2", "in", "bn", "syncbn", "ghost:1", "mabn", "cbn", "bgn:4", "rms", "bcn-micro", "cn"]
SPECS += ["frozen", "frn", "bcn", "sn", "pn", "evonorm-b0", "lrn", "none", "ws+gn", "ws+bcn", "ws+bn"]


class Scaled(nn.Module):
    def forward(self, weight):
        return 1.5 * weight


class Residual(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        return x + self.body(x)


class Block(nn.Module):
    """A norm and an activation, one after the other in its text, under two names each."""

    def __init__(self, norm, act):
        super().__init__()
        self.norm, self.act = norm, act
        self.alias = norm
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, x):
        x = self.norm(x)
        x = self.act(x)
        return x * self.gain


class Listed(nn.Module):
    def __init__(self, *children):
        super().__init__()
        self.parts = nn.ModuleList(children)
        self.named = nn.ModuleDict({f"part{number}": child for number, child in enumerate(children)})
        self.kept = {"all": [list(children)]}

    def forward(self, x):
        for part in self.parts:
            x = part(x)
        return x


def norm(r):
    yes = r.random() < 0.5
    return r.choice(
        [
            lambda: nn.BatchNorm2d(C, affine=yes, momentum=r.choice([None, 0.1, 1.0])),
            lambda: nn.BatchNorm2d(C, track_running_stats=yes, eps=r.choice([1e-5, 0.1])),
            lambda: nn.InstanceNorm2d(C, affine=r.random() < 0.5, track_running_stats=yes),
            lambda: nn.GroupNorm(r.choice([1, 2, 4]), C, affine=yes),
            lambda: groupnorm.GroupNorm(2, C, activation=r.choice([None, "relu", "silu"])),
            lambda: norm_layer(r.choice(OWN))(C),
        ]
    )()


def activation(r):
    return r.choice([nn.ReLU, nn.SiLU, nn.GELU, nn.Identity])()


def layer(r):
    return nn.Conv2d(C, C, r.choice([1, 3]), padding="same", bias=r.random() < 0.5)


def part(r, depth=0):
    """A random part of a network."""

    def inner():
        return part(r, depth + 1)

    def twice():
        one = inner()
        return nn.Sequential(one, one)

    leaves = [norm, norm, layer, activation]
    if depth > 2 or r.random() < 0.3:
        return r.choice(leaves)(r)
    return r.choice(
        [
            lambda: nn.Sequential(*(inner() for _ in range(r.randrange(4)))),
            lambda: Listed(*(inner() for _ in range(r.randint(1, 3)))),
            lambda: Residual(inner()),
            lambda: Block(norm(r), activation(r)),
            lambda: nn.Sequential(layer(r), norm(r), activation(r)),
            twice,
        ]
    )()


def named(name, ran):
    """A hook that notes what it was called with, where that is a module."""

    def hook(*arguments, **options):
        ran.extend((name, id(argument)) for argument in arguments[:1] if isinstance(argument, nn.Module))

    return hook


KINDS = {
    "before": lambda m, h: m.register_forward_pre_hook(h),
    "before with options": lambda m, h: m.register_forward_pre_hook(h, with_kwargs=True),
    "before all": lambda m, h: m.register_forward_pre_hook(h, prepend=True),
    "after": lambda m, h: m.register_forward_hook(h),
    "after with options": lambda m, h: m.register_forward_hook(h, with_kwargs=True),
    "always": lambda m, h: m.register_forward_hook(h, always_call=True),
    "before backward": lambda m, h: m.register_full_backward_pre_hook(h),
    "backward": lambda m, h: m.register_full_backward_hook(h),
    "before saving": lambda m, h: m.register_state_dict_pre_hook(h),
    "saved": lambda m, h: m.register_state_dict_post_hook(h),
    "saving": lambda m, h: m._register_state_dict_hook(h),
    "before loading": lambda m, h: m.register_load_state_dict_pre_hook(h),
    "before loading alone": lambda m, h: m._register_load_state_dict_pre_hook(h),
    "loaded": lambda m, h: m.register_load_state_dict_post_hook(h),
}


def network(r):
    """A network that maps images of four channels to such, in any state."""
    model = nn.Sequential(part(r), part(r), layer(r), norm(r))
    modules = list(model.modules())
    norms = [module for module in modules if isinstance(getattr(module, "weight", None), nn.Parameter)]
    norms = [module for module in norms if module.weight.dim() == 1]
    if len(norms) > 1 and r.random() < 0.3:
        r.choice(norms).weight = r.choice(norms).weight
    if norms and r.random() < 0.2:
        parametrize.register_parametrization(r.choice(norms), "weight", Scaled())
    for module in modules:
        if r.random() < 0.15:
            module.eval()
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(r.random() < 0.85)
    return model


def optimizer_of(model, r):
    """An optimizer of most of the parameters, in one or two groups, with or without names."""
    names = {id(p): name for name, p in model.named_parameters()}
    parameters = [p for p in model.parameters() if r.random() < 0.9]
    if r.random() < 0.5:
        r.shuffle(parameters)
    cut = r.randint(0, len(parameters))
    with_names = r.random() < 0.5
    parts = [part for part in (parameters[:cut], parameters[cut:]) if part] or [[nn.Parameter(torch.ones(1))]]
    groups = [{"params": [(names.get(id(p), "other"), p) for p in part] if with_names else part} for part in parts]
    if r.random() < 0.5:
        return torch.optim.SGD(groups, lr=0.01, momentum=0.9)
    return torch.optim.Adam(groups, lr=0.01)


X = torch.randn(2, C, 4, 4, generator=torch.Generator().manual_seed(0))


def step(model, optimizer):
    optimizer.zero_grad()
    y = model(X.clone().requires_grad_())
    y.backward(torch.randn_like(y))
    optimizer.step()


def shape_of(model):
    """Everything of a model but its values: which objects are where, in which order."""
    modules = dict(model.named_modules(remove_duplicate=False))
    return {
        "modules": [(path, id(module), type(module)) for path, module in modules.items()],
        "modes": [(path, module.training) for path, module in modules.items()],
        "parameters": [(name, id(p), p.requires_grad) for name, p in model.named_parameters(remove_duplicate=False)],
        "buffers": [(name, id(b)) for name, b in model.named_buffers(remove_duplicate=False)],
        "state dict": list(model.state_dict()),
        "attributes": [
            (path, sorted(name for name in vars(module) if name not in ("forward", "__class__")))
            for path, module in modules.items()
        ],
    }


def hooks_of(model):
    """Every hook, in order, and whether backward hooks are full ones, which is not known before there are some."""
    return {
        path: (
            {name: list(value.items()) for name, value in vars(module).items() if "_hooks" in name and value},
            module._is_full_backward_hook if module._backward_hooks else None,
        )
        for path, module in model.named_modules()
    }


def groups_of(optimizer):
    return [([id(p) for p in group["params"]], list(group.get("param_names", ()))) for group in optimizer.param_groups]


def values_of(model, optimizer):
    tensors = {name: t.detach().clone() for name, t in [*model.named_parameters(), *model.named_buffers()]}
    states = {
        id(p): {name: v.clone() if torch.is_tensor(v) else v for name, v in state.items()}
        for p, state in optimizer.state.items()
    }
    return tensors, states


def assert_same_values(now, before):
    for mine, theirs in zip(now, before, strict=True):
        assert mine.keys() == theirs.keys()
        for key, value in mine.items():
            pairs = [(value, theirs[key])]
            if isinstance(value, dict):  # the state of a parameter
                pairs = zip(value.values(), theirs[key].values(), strict=True)
            assert all(torch.equal(a, b) if torch.is_tensor(a) else a == b for a, b in pairs), key


def fails_at(count, monkeypatch):
    """Let the conversion of the norm after these fail."""
    module = sys.modules["groupnorm.conversion.convert"]
    build, done = module.build, []

    def failing(*arguments):
        done.append(1)
        if len(done) > count:
            raise ZeroDivisionError
        return build(*arguments)

    monkeypatch.setattr(module, "build", failing)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", SEEDS)
def test_everything_comes_back(seed):
    r = random.Random(seed)
    torch.manual_seed(seed)
    model = network(r)
    optimizer = optimizer_of(model, r)
    step(model, optimizer)
    ran = []
    handles = [
        KINDS[kind](module, named(kind, ran)) for module in list(model.modules()) for kind in KINDS if r.random() < 0.1
    ]
    shape, hooks, groups, values = shape_of(model), hooks_of(model), groups_of(optimizer), values_of(model, optimizer)

    def changed(change):
        """Try a change that may be refused, or fail half-way: then everything is as it was."""
        before = shape_of(model), hooks_of(model), groups_of(optimizer)
        of_before = values_of(model, optimizer)
        try:
            return change()
        except (GroupNormError, ZeroDivisionError):
            assert (shape_of(model), hooks_of(model), groups_of(optimizer)) == before
            assert_same_values(values_of(model, optimizer), of_before)
            return None

    spec = r.choice(SPECS)
    twin = changed(lambda: groupnorm.convert(model, spec, sample_input=X))
    assert (shape_of(model), hooks_of(model), groups_of(optimizer)) == (shape, hooks, groups)
    assert_same_values(values_of(model, optimizer), values)
    if twin is not None:
        assert not {*map(id, twin.modules())} & {*map(id, model.modules())}
        assert not {*map(id, twin.parameters())} & {*map(id, model.parameters())}
        gc.collect()
        twin.load_state_dict(twin.state_dict())
        twin(X)
    if r.random() < 0.5:
        with pytest.MonkeyPatch.context() as patch:
            fails_at(r.randrange(4), patch)
            report = changed(lambda: groupnorm.convert_(model, spec, sample_input=X, optimizer=optimizer))
            if report is not None:
                report.undo()
        assert (shape_of(model), hooks_of(model), groups_of(optimizer)) == (shape, hooks, groups)
    reports, before_all = [], dict(model.named_modules())
    for _ in range(r.randint(1, 3)):
        spec = r.choice([*SPECS, "accelerate", "accelerate"])
        olds = dict(model.named_modules())
        if spec == "accelerate":
            report = changed(lambda: groupnorm.accelerate_(model))
        else:
            report = changed(lambda s=spec: groupnorm.convert_(model, s, sample_input=X, optimizer=optimizer))
        if report is None:
            continue
        reports.append(report)
        gone = [olds[row.path] for row in report.replaced if olds[row.path] not in set(model.modules())]
        noted = {note.partition(" still")[0] for note in report.notes if "still holds" in note}
        assert noted == {*references(model, gone)}
        owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
        assert not owned & ({id(p) for old in gone for p in old.parameters()} - {id(p) for p in model.parameters()})
        gc.collect()
        ran.clear()
        step(model, optimizer)
        model.load_state_dict(copy.deepcopy(model).state_dict())
        assert {key for name, key in ran if not name.startswith(("saving", "before saving", "saved"))} <= {
            *map(id, model.modules())
        }
        if r.random() < 0.5:
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        if r.random() < 0.3:
            model.to(torch.float64).to(torch.float32)  # new buffers, in the parameters of before
            shape["buffers"] = None
    late = [
        KINDS[kind](module, named(kind, ran))
        for path, module in model.named_modules()
        for kind in KINDS
        if path in before_all and r.random() < 0.05
    ]
    for report in reversed(reports):
        report.undo()
    assert shape_of(model) | ({"buffers": None} if shape["buffers"] is None else {}) == shape
    assert groups_of(optimizer) == groups
    step(model, optimizer)
    gc.collect()
    ran.clear()
    model.load_state_dict(model.state_dict())
    step(model, optimizer)
    assert {key for _, key in ran} <= {*map(id, model.modules())}
    for handle in late:
        handle.remove()
    assert hooks_of(model) == hooks
    for handle in handles:
        handle.remove()
    assert not any(kinds for kinds, _ in hooks_of(model).values())
