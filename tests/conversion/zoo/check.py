"""What a conversion promises, held against one network; and the row that the page shows of it."""

import re
from collections import Counter
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

import groupnorm
from conversion.zoo.network import Network
from groupnorm.conversion.probe import run

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
FROZEN = re.compile("FrozenBatchNorm")


def check(network: Network) -> dict:
    """Convert the network, train it a step at batch size 1, and take it back; raise unless all is as promised.

    Returns:
        what was converted to what, how many norms were left as they were, and the seconds of plan and conversion.
    """
    torch.manual_seed(0)
    model, inputs = network.build()
    modules, tensors, text = _modules(model), _tensors(model), str(model)
    values = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    learned = _learned(model)

    start = perf_counter()
    plan = groupnorm.plan(model, network.to, sample_input=inputs)
    report = groupnorm.convert_(model, plan)
    seconds = perf_counter() - start

    assert report.plan == plan
    assert plan.of("replace")
    assert not plan.of("refuse")
    _every_norm_has_a_row(plan, modules)
    _plan_is_what_happened(plan, modules, _modules(model))
    _group_norms_are_left_unless_other_groups_are_asked_for(network, model, plan, modules)
    replaced = _paths(plan.of("replace"))
    _the_rest_is_untouched(replaced, modules, _modules(model), tensors, _tensors(model), values)
    assert _learned(model) == learned

    _trains(model, inputs, replaced)

    report.undo()
    now = _tensors(model)
    assert str(model) == text
    assert list(now) == list(tensors)
    assert all(now[name] is tensor for name, tensor in tensors.items())
    assert [name for name, value in values.items() if not _same(now[name], value)] == []
    after = _modules(model)
    assert list(after) == list(modules)
    assert all(after[path] is module for path, module in modules.items())

    return {
        "norms": _count(modules, plan.of("replace")),
        "becomes": report.counts,
        "kept": _count(modules, plan.of("skip")),
        "seconds": round(seconds, 2),
    }


def _every_norm_has_a_row(plan, modules):
    """Norms as this test finds them, by their classes and without the rules of the conversion."""
    norms = {path for path, module in modules.items() if _is_norm(module)}
    assert norms == set(_paths(plan.rows))


def _plan_is_what_happened(plan, modules, after):
    for row in plan.of("replace"):
        old, new = modules[row.path], after[row.path]
        assert isinstance(new, groupnorm.GroupNorm), row
        assert (new.num_groups, new.num_channels) == (row.number, row.channels), row
        assert new.eps == getattr(old, "eps", 1e-5), row  # the frozen ones of transformers have it in their forward
        assert new.training == old.training, row
        assert all(after[path] is new for path in row.shared), row
        for name in ("weight", "bias"):
            mine, its = getattr(new, name), getattr(old, name)
            assert (mine is None) == (its is None), row
            if its is not None:  # a parameter stays the very same; a buffer becomes one over the same memory
                assert mine is its or (mine.data_ptr() == its.data_ptr() and not mine.requires_grad), row
    for row in plan.of("skip"):
        left = modules[row.path]
        assert all(after[path] is left for path in _paths([row])), row
        assert isinstance(left, nn.GroupNorm) or left.num_features == 1, row  # of one channel, instance is group norm
    norms = [path for path, module in after.items() if _is_norm(module) and not isinstance(module, nn.GroupNorm)]
    assert {path for path in norms if after[path].num_features > 1} == set()


def _group_norms_are_left_unless_other_groups_are_asked_for(network, model, plan, modules):
    if network.to == "gn":
        rows = plan.rows
    else:
        assert {f"gn:{module.num_groups}" for module in _modules(model).values() if _is_norm(module)} == {network.to}
        rows = groupnorm.plan(model).rows
    assert [row for row in rows if isinstance(modules[row.path], nn.GroupNorm) and row.action != "skip"] == []


def _the_rest_is_untouched(replaced, modules, after, tensors, now, values):
    def touched(path):
        return any(path == norm or path.startswith(f"{norm}.") for norm in _ancestors(path) if norm in replaced)

    assert all(after[path] is module for path, module in modules.items() if not touched(path))
    rest = [name for name in tensors if not touched(name)]
    assert rest == [name for name in now if not touched(name)]
    assert all(now[name] is tensors[name] and _same(now[name], values[name]) for name in rest)


def _trains(model, inputs, replaced):
    outputs = [t for t in _found(run(model.train(), inputs)) if t.is_floating_point()]
    assert outputs
    assert all(t.isfinite().all() for t in outputs)
    differentiable = [t for t in outputs if t.requires_grad]
    torch.autograd.backward(differentiable, [torch.randn_like(t) for t in differentiable])
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert all(grad.isfinite().all() for grad in gradients.values())
    assert any(grad.count_nonzero() for grad in gradients.values())
    learns = [
        f"{path}.weight" for path in replaced if getattr(model.get_submodule(path).weight, "requires_grad", False)
    ]
    assert not learns or any(gradients[name].count_nonzero() for name in learns if name in gradients)
    model.zero_grad()


def _is_norm(module):
    return isinstance(module, (_BatchNorm, _InstanceNorm, nn.GroupNorm)) or FROZEN.search(type(module).__name__)


def _modules(model):
    return dict(model.named_modules(remove_duplicate=False))


def _tensors(model):
    """All parameters and buffers, also those outside of the state dict."""
    named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    return dict(sorted(named, key=lambda item: item[0]))


def _learned(model):
    """How many parameters learn, and their elements."""
    learned = [p.numel() for p in model.parameters() if p.requires_grad]
    return len(learned), sum(learned)


def _paths(rows):
    return {path for row in rows for path in (row.path, *row.shared)}


def _ancestors(path):
    parts = path.split(".")
    return [".".join(parts[: n + 1]) for n in range(len(parts))]


def _count(modules, rows):
    return dict(Counter(type(modules[row.path]).__name__ for row in rows))


def _same(a, b):
    """Bit for bit, so that a NaN is itself."""
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(_bits(a), _bits(b))


def _bits(tensor):
    return tensor.detach().reshape(-1).view(INTEGERS[tensor.element_size()])


def _found(output):
    """The tensors of an output, however deep."""
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if isinstance(output, dict) else output
    return [t for value in values if isinstance(value, (Tensor, dict, list, tuple)) for t in _found(value)]
