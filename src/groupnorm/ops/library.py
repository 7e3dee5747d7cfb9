"""Group norm as an operation that PyTorch knows: what ``torch.compile``, ``torch.export`` and fake tensors see.

In eager mode the kernels are called directly, for the way through the dispatcher costs more than a small norm.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from groupnorm.ops import native
from groupnorm.ops.activation import activate
from groupnorm.ops.backends import COMPOSED, compiled, resolve
from groupnorm.ops.checks import (
    check_activation,
    check_device,
    check_eps,
    check_groups,
    check_input,
    check_like,
    check_parameters,
    checked_statistics,
)
from groupnorm.ops.gpu import architecture
from groupnorm.ops.spec import Spec, accumulation_dtype, arranged, layout_of

NO_ACTIVATION = ""


@torch.library.custom_op("groupnorm::group_norm", mutates_args=())
def group_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, eps: float, activation: str, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    """``(y, mean, rstd)``; an activation of "" is none."""
    _check(x, weight, bias, groups, eps, activation)
    spec = _spec(x, groups, activation)
    name = resolve(spec, backend)
    x = arranged(x, spec.layout)
    if name in COMPOSED:
        y = native.group_norm(x, groups, weight, bias, eps, spec.activation)
        mean, rstd = native.group_statistics(x, groups, eps)
        return arranged(y, spec.layout), mean.contiguous(), rstd.contiguous()
    y, *statistics = compiled(name).forward(spec, x, weight, bias, eps)
    return y, *cast(tuple[Tensor, Tensor], tuple(statistics))


@torch.library.custom_op("groupnorm::group_norm_backward", mutates_args=())
def group_norm_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    groups: int,
    eps: float,
    activation: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """``(dx, dweight, dbias)``, the last two ``[C]`` and in the dtype of the statistics."""
    _check(x, weight, bias, groups, eps, activation)
    check_like("dy", dy, x)
    spec = _spec(x, groups, activation)
    mean, rstd = (t.to(spec.accumulates).contiguous() for t in checked_statistics((mean, rstd), x, groups))
    name = resolve(spec, backend)
    if name in COMPOSED:
        dx, dweight, dbias = native.group_norm_backward(dy, x, weight, bias, mean, rstd, groups, spec.activation)
        return arranged(dx, spec.layout), dweight, dbias
    x, dy = arranged(x, spec.layout), arranged(dy, spec.layout)
    *gradients, _ = compiled(name).backward(spec, dy, x, weight, bias, mean, rstd)
    return cast(tuple[Tensor, Tensor, Tensor], tuple(gradients))


@group_norm.register_fake
def _(x, weight, bias, groups, eps, activation, backend):  # type: ignore[no-untyped-def]
    _check_devices(x, weight=weight, bias=bias)
    mean = x.new_empty((x.shape[0], groups), dtype=accumulation_dtype(x.dtype))
    return _empty_like(x), mean, torch.empty_like(mean)


@group_norm_backward.register_fake
def _(dy, x, weight, bias, mean, rstd, groups, eps, activation, backend):  # type: ignore[no-untyped-def]
    _check_devices(x, dy=dy, weight=weight, bias=bias, mean=mean, rstd=rstd)
    dweight = x.new_empty(x.shape[1], dtype=mean.dtype)
    return _empty_like(x), dweight, torch.empty_like(dweight)


def _check_devices(x: Tensor, **others: Tensor | None) -> None:
    """Raise unless all are where ``x`` is: one on the meta device brings a call here, where nothing is computed."""
    for name, tensor in others.items():
        if tensor is not None:
            check_device(name, tensor.device, x.device)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, bias, *ctx.call = inputs
    _, mean, rstd = output
    ctx.save_for_backward(x, weight, bias, mean, rstd)
    ctx.mark_non_differentiable(mean, rstd)


def _backward(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Any, ...]:
    x, weight, bias, mean, rstd = ctx.saved_tensors
    dx, dweight, dbias = group_norm_backward(dy, x, weight, bias, mean, rstd, *ctx.call)
    of_weight = dweight.to(weight.dtype) if weight is not None and ctx.needs_input_grad[1] else None
    of_bias = dbias.to(bias.dtype) if bias is not None and ctx.needs_input_grad[2] else None
    return dx if ctx.needs_input_grad[0] else None, of_weight, of_bias, None, None, None, None


group_norm.register_autograd(_backward, setup_context=_setup_context)


def decomposition(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, eps: float, activation: str, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The operation as ATen's, for what knows only these, as the export to ONNX."""
    y = torch.group_norm(x, groups, weight, bias, eps)
    return activate(y, activation or None), *native.group_statistics(x, groups, eps)


torch._decomp.register_decomposition([torch.ops.groupnorm.group_norm.default])(decomposition)


def _check(x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, eps: float, activation: str) -> None:
    """The checks of :mod:`groupnorm.functional`: an exported program calls the operator without it."""
    check_input(x)
    check_groups(groups, x.shape[1])
    check_eps(eps)
    check_activation(activation or None)
    check_parameters(x, weight, bias)


def _spec(x: Tensor, groups: int, activation: str) -> Spec:
    gpu = architecture(x.device)
    return Spec(x.device.type, x.dtype, tuple(x.shape), layout_of(x), groups, activation or None, True, gpu)


def _empty_like(x: Tensor) -> Tensor:
    """What a kernel returns for ``x``."""
    return torch.empty_like(arranged(x, layout_of(x)))
