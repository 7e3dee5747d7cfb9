"""Compiled kernels as differentiable functions of eager mode: only the normalised tensor and its statistics are kept.

The backward pass recomputes the activation from the input. A backward pass that is itself to be differentiated
(``create_graph=True``) is composed of ATen's operations, which have derivatives of every order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, is_grad_enabled
from torch._C._functorch import is_legacy_batchedtensor

from groupnorm.ops import native
from groupnorm.ops.backends import compiled
from groupnorm.ops.masked import masked_statistics, valid_positions
from groupnorm.ops.spec import Spec, arranged
from groupnorm.ops.watched import watched

Gradient = Tensor | None


class Normalize(torch.autograd.Function):
    """``(y, total)`` of ``total = x + residual``, which is kept instead of x, or y alone where there is no residual.

    The total is an output so that a second derivative finds its way through it; nobody else gets it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        spec: Spec,
        eps: float,
        backend: str,
    ) -> Any:
        total = None if residual is None else torch.empty_like(x)
        y, mean, rstd = compiled(backend).forward(spec, x, weight, bias, eps, residual=residual, total=total)
        if total is not None:
            ctx.set_materialize_grads(False)
        ctx.save_for_backward(x if total is None else total, weight, bias, mean, rstd)
        ctx.call = spec, eps, backend
        return y if total is None else (y, total)

    @staticmethod
    def backward(ctx: Any, dy: Gradient, dtotal: Gradient = None) -> Any:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        spec, eps, backend = ctx.call
        of_x, of_residual, of_weight, of_bias = ctx.needs_input_grad[:4]
        needs = (of_x or of_residual, of_weight, of_bias)
        dx, dweight, dbias = None, None, None
        if dy is not None and _looked_into(dy):
            dx, dweight, dbias = _composed(
                lambda x, w, b: native.group_norm(x, spec.groups, w, b, eps, spec.activation),
                (x, weight, bias),
                needs,
                dy,
            )
        elif dy is not None:
            dy = arranged(dy, spec.layout)
            dx, dweight, dbias, _ = compiled(backend).backward(spec, dy, x, weight, bias, mean, rstd, needs=needs)
            dweight, dbias = _as(dweight, weight), _as(dbias, bias)
        if dtotal is not None:  # in a second derivative alone
            dx = dtotal if dx is None else dx + dtotal
        return dx if of_x else None, dx if of_residual else None, dweight, dbias, None, None, None


class Apply(torch.autograd.Function):
    """``y``, normalised with statistics that come from elsewhere, and have gradients of their own."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        mean: Tensor,
        rstd: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        spec: Spec,
        backend: str,
    ) -> Tensor:
        y, _, _ = compiled(backend).forward(spec, x, weight, bias, 0.0, statistics=(mean, rstd))
        ctx.save_for_backward(x, mean, rstd, weight, bias)
        ctx.call = spec, backend
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, mean, rstd, weight, bias = ctx.saved_tensors
        spec, backend = ctx.call
        needs = ctx.needs_input_grad[:5]
        # With rstd = 0 the sums over g * xhat do not tell those over g * (x - mean).
        if _looked_into(dy) or (needs[2] and bool((rstd == 0).any())):
            gradients = _composed(
                lambda x, m, r, w, b: native.group_norm(x, spec.groups, w, b, 0.0, spec.activation, (m, r)),
                (x, mean, rstd, weight, bias),
                needs,
                dy,
            )
            return *gradients, None, None
        dx, dweight, dbias, sums = compiled(backend).backward(
            spec, arranged(dy, spec.layout), x, weight, bias, mean, rstd, fixed=True, needs=(needs[0], *needs[3:])
        )
        assert sums is not None
        dmean = -rstd * sums[0] if needs[1] else None
        drstd = sums[1] / rstd if needs[2] else None
        return dx, dmean, drstd, _as(dweight, weight), _as(dbias, bias), None, None


class Statistics(torch.autograd.Function):
    """``(mean, rstd)`` of each group, of the valid positions where there is a mask."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor | None, spec: Spec, eps: float, backend: str) -> Any:
        mean, rstd = statistics(spec, x, mask, eps, backend)
        ctx.save_for_backward(x, mask, mean, rstd)
        ctx.call = spec, eps
        return mean, rstd

    @staticmethod
    def backward(ctx: Any, dmean: Tensor, drstd: Tensor) -> Any:
        x, mask, mean, rstd = ctx.saved_tensors
        spec, eps = ctx.call
        if _looked_into(dmean) or _looked_into(drstd):
            with torch.enable_grad():
                y = composed_statistics(x, spec.groups, eps, mask)
            (dx,) = torch.autograd.grad(y, (x,), (dmean, drstd), create_graph=is_grad_enabled())
            return dx, None, None, None, None
        positions = spec.positions if mask is None else valid_positions(mask, x).clamp(min=1)
        count = positions * (spec.channels // spec.groups)
        by_x = native.per_channel_of_group(-(rstd**3) * drstd / count, x)
        constant = native.per_channel_of_group(dmean / count, x)
        dx = (x - native.per_channel_of_group(mean, x)) * by_x + constant
        dx = dx if mask is None else torch.where(mask, dx, 0)
        return dx.to(x.dtype), None, None, None, None


def statistics(spec: Spec, x: Tensor, mask: Tensor | None, eps: float, backend: str) -> tuple[Tensor, Tensor]:
    """``(mean, rstd)`` of each group by a compiled backend, without a gradient."""
    kernels = compiled(backend)
    if mask is None:
        return kernels.statistics(spec, x, eps)
    wide = spec._replace(dtype=spec.accumulates)
    return masked_statistics(
        x, spec.groups, mask, eps, average=lambda t: kernels.statistics(wide, arranged(t, spec.layout), eps)[0]
    )


def composed_statistics(x: Tensor, groups: int, eps: float, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """``(mean, rstd)`` of each group, composed of ATen's operations."""
    if mask is None:
        return native.group_statistics(x, groups, eps)
    return masked_statistics(x, groups, mask, eps)


def _as(gradient: Gradient, parameter: Tensor | None) -> Gradient:
    """A gradient in the dtype of its parameter."""
    if gradient is None or parameter is None or gradient.dtype is parameter.dtype:
        return gradient
    return gradient.to(parameter.dtype)


def _looked_into(dy: Tensor) -> bool:
    """Whether the gradients are to be differentiated again, or ``dy`` is more than numbers in memory."""
    has_no_memory = dy._is_zerotensor() or is_legacy_batchedtensor(dy)
    return is_grad_enabled() or watched(dy) or has_no_memory


def _composed(function: Any, inputs: tuple[Tensor | None, ...], needs: tuple[bool, ...], dy: Tensor) -> list[Gradient]:
    """Gradients by ATen's operations, which can be differentiated again where that is wanted."""
    again = is_grad_enabled()
    wanted = [t for t, need in zip(inputs, needs, strict=True) if need and t is not None]
    with torch.enable_grad():
        y = function(*inputs)
    found = iter(torch.autograd.grad(y, wanted, dy, create_graph=again))
    return [next(found) if need and t is not None else None for t, need in zip(inputs, needs, strict=True)]
