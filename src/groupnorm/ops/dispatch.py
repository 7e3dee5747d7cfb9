"""One call, from arguments that are checked to the backend that computes it."""

from __future__ import annotations

import functools
import math
from typing import cast

import torch
from torch import Tensor, is_grad_enabled

from groupnorm.errors import BackendError
from groupnorm.ops import autograd, library, native, reference
from groupnorm.ops.activation import activate
from groupnorm.ops.autograd import Apply, Normalize, composed_statistics
from groupnorm.ops.backends import AUTO, COMPILED, COMPOSED, Explanation, compiled, explain, resolve
from groupnorm.ops.gpu import architecture
from groupnorm.ops.spec import CONTIGUOUS, Spec, accumulation_dtype, arranged, is_arranged, layout_of
from groupnorm.ops.watched import transformed, watched
from groupnorm.sets import group_set

Statistics = tuple[Tensor, Tensor]

_LOOKED_INTO = "something looks into it: torch.func, forward mode, a trace, a mode or a subclass of Tensor"


def group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    *,
    residual: Tensor | None = None,
    statistics: Statistics | None = None,
    out: Tensor | None = None,
    backend: str = AUTO,
) -> Tensor:
    """Group norm of ``x + residual``, with the activation."""
    if watched(x, weight, bias, residual, *(statistics or ())):
        total = x if residual is None else x + residual
        y = _recorded(total, groups, weight, bias, eps, activation, statistics, backend)
        return _delivered(y, out)
    grad = needs_grad(x, weight, bias, residual, *(statistics or ()))
    spec, name = choose(x.device, x.dtype, x.shape, layout_of(x), groups, activation, grad, backend)
    x = arranged(x, spec.layout)
    if residual is not None and (statistics is not None or name in COMPOSED):
        x, residual = arranged(x + residual, spec.layout), None
    if name in COMPOSED:
        return _delivered(_composed(name, x, groups, weight, bias, eps, activation, statistics), out)
    if residual is not None:
        residual = arranged(residual, spec.layout)
    if statistics is not None:
        mean, rstd = (t.to(spec.accumulates).contiguous() for t in statistics)
        if grad:
            return cast(Tensor, Apply.apply(x, mean, rstd, weight, bias, spec, name))
        statistics = mean, rstd
    elif grad:
        y = Normalize.apply(x, residual, weight, bias, spec, eps, name)
        return cast(Tensor, y if residual is None else y[0])
    given = x, residual, weight, bias, *(statistics or ())
    to = out if out is not None and _is_writable(out, spec.layout, given) else None
    if to is None and residual is not None:
        to = torch.empty_like(x)
    y, _, _ = compiled(name).forward(
        spec, x, weight, bias, eps, residual=residual, total=to, statistics=statistics, out=to
    )
    if to is out is not None:
        torch.autograd.graph.increment_version(out)  # whoever keeps it for a backward pass is to notice
    return _delivered(y, out)


def compute(spec: Spec, name: str, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Group norm of ``x``, in the layout of the spec, as chosen by :func:`choose`, where nothing looks into it."""
    if name in COMPOSED:
        return _composed(name, x, spec.groups, weight, bias, eps, spec.activation, None)
    if spec.needs_grad:
        return cast(Tensor, Normalize.apply(x, None, weight, bias, spec, eps, name))
    return compiled(name).forward(spec, x, weight, bias, eps)[0]


def group_statistics(
    x: Tensor, groups: int, eps: float, *, mask: Tensor | None = None, backend: str = AUTO
) -> Statistics:
    """``(mean, rstd)`` of each group, ``[N, G]``; of the valid positions where there is a mask ``[N, 1, *]``."""
    if watched(x, mask):
        if backend in COMPILED:
            raise BackendError(backend, _LOOKED_INTO)
        return composed_statistics(x, groups, eps, mask)
    grad = needs_grad(x)
    spec, name = choose(x.device, x.dtype, x.shape, layout_of(x), groups, None, grad, backend)
    if name in COMPOSED:
        return composed_statistics(x, groups, eps, mask)
    x = arranged(x, spec.layout)
    if grad:
        return cast(Statistics, autograd.Statistics.apply(x, mask, spec, eps, name))
    return autograd.statistics(spec, x, mask, eps, name)


def explanation(x: Tensor, groups: int, activation: str | None, backend: str) -> Explanation:
    """Which backend runs a call of eager mode, and why the others do not."""
    of_gpu = architecture(x.device)
    spec = Spec(x.device.type, x.dtype, tuple(x.shape), layout_of(x), groups, activation, x.requires_grad, of_gpu)
    return explain(spec, backend)


def _recorded(
    x: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    statistics: Statistics | None,
    backend: str,
) -> Tensor:
    """The call as operations that a compiler or a transform sees."""
    if _records_the_operation(x, weight, bias, activation, backend) and statistics is None:
        name = library.NO_ACTIVATION if activation is None else activation
        y, _, _ = library.group_norm(x, weight, bias, groups, eps, name, backend)
        return cast(Tensor, y)
    return _composed(backend, x, groups, weight, bias, eps, activation, statistics)


def _records_the_operation(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, activation: str | None, backend: str
) -> bool:
    """Whether the operation of our own is recorded, rather than those of ATen."""
    if backend in COMPILED and transformed(x, weight, bias):
        raise BackendError(backend, _LOOKED_INTO)
    if backend != AUTO:
        return backend in COMPILED
    if not torch.compiler.is_compiling() or transformed(x):
        return False
    fewest = _fewest_elements(x.device.type, x.device.index, x.dtype, activation)
    return fewest is not None and (torch.compiler.is_exporting() or math.prod(x.shape[1:]) >= fewest)


def _fewest_elements(device: str, index: int | None, dtype: torch.dtype, activation: str | None) -> int | None:
    """From how many elements of a sample on a compiled graph has a kernel; None where there is none."""
    of_gpu = architecture(torch.device(device if index is None else f"{device}:{index}"))
    likely = Spec(device, dtype, (1, 1, 1 << 20), CONTIGUOUS, 1, activation, True, of_gpu)
    name = resolve(likely)
    return compiled(name).FEW_ELEMENTS if name in COMPILED else None


# What torch.compiler.assume_constant_result sets, which would load the whole compiler: asked when a graph is made.
_fewest_elements._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _composed(
    name: str,
    x: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    statistics: Statistics | None,
) -> Tensor:
    if name == "reference" and statistics is None:
        wide = x.to(accumulation_dtype(x.dtype))
        y = reference.normalize(wide, group_set(groups), weight, bias, eps)
        return activate(y.to(x.dtype), activation)
    return native.group_norm(x, groups, weight, bias, eps, activation, statistics)


def needs_grad(*tensors: Tensor | None) -> bool:
    """Whether a backward pass may follow."""
    if is_grad_enabled():
        for t in tensors:
            if t is not None and t.requires_grad:
                return True
    return False


@functools.lru_cache(maxsize=4096)
def choose(
    device: torch.device,
    dtype: torch.dtype,
    shape: torch.Size,
    layout: str,
    groups: int,
    activation: str | None,
    grad: bool,
    backend: str,
) -> tuple[Spec, str]:
    """What is asked of a backend, and which."""
    spec = Spec(device.type, dtype, tuple(shape), layout, groups, activation, grad, architecture(device))
    return spec, resolve(spec, backend)


def _is_writable(out: Tensor, layout: str, given: tuple[Tensor | None, ...]) -> bool:
    """Whether a kernel can write to ``out``: its memory is laid out so, and holds nothing that is still to be read.

    One and the same tensor may be read and written.
    """
    if out.is_neg() or not is_arranged(out, layout):
        return False
    begin, end = out.data_ptr(), out.data_ptr() + out.nbytes
    return not any(
        t.data_ptr() < end and begin < t.data_ptr() + t.nbytes and (t.data_ptr(), t.nbytes) != (begin, out.nbytes)
        for t in given
        if t is not None
    )


def _delivered(y: Tensor, out: Tensor | None) -> Tensor:
    return y if out is None or out is y else out.copy_(y)
