"""ATen's group norm, and what it lacks composed of ATen's operations: differentiable to any order, seen by any tool."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, is_autocast_enabled
from torch import group_norm as aten_group_norm
from torch._C import _are_functorch_transforms_active
from torch.compiler import is_compiling

from groupnorm.ops.activation import activate, activation_gradient
from groupnorm.ops.moments import map_moments, per_map
from groupnorm.ops.reference import affine
from groupnorm.ops.spec import accumulation_dtype, arranged, layout_of

Statistics = tuple[Tensor, Tensor]

_has_autocast = functools.cache(torch.amp.is_autocast_available)


def group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None = None,
    statistics: Statistics | None = None,
) -> Tensor:
    """Group norm of ``x[N, C, *]`` in the dtype of ``x``, also under autocast, with the activation.

    Args:
        x: the input.
        groups: number of groups.
        weight: scale ``[C]``, of the dtype of ``x`` or of a wider one.
        bias: shift ``[C]``.
        eps: added to the variance.
        activation: applied to the normalised output.
        statistics: mean and rstd ``[N, G]`` to apply instead of those of ``x``.
    """
    device = "cpu" if x.is_cpu else x.device.type
    if (device == "cpu" or _has_autocast(device)) and is_autocast_enabled(device):
        with torch.autocast(device, enabled=False):
            return group_norm(x, groups, weight, bias, eps, activation, statistics)
    if statistics is not None:
        return activate(_apply(x, *statistics, weight, bias).to(x.dtype), activation)
    y = _aten(x, groups, weight, bias, eps)
    return y if activation is None else activate(y, activation)


def _aten(x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """ATen's group norm, called so that its statistics are as exact as those of float32 can be.

    Its channels-last kernel computes the variance as E[x^2] - mean^2, which cancels, and so it gets contiguous inputs.
    For the backward pass it keeps mean and rstd in the dtype of scale and shift, and so these are float32. Beside them
    its eager CPU kernel takes an input of half precision; elsewhere the input has to be float32 too.
    """
    dtype, wide = x.dtype, accumulation_dtype(x.dtype)
    transformed = _are_functorch_transforms_active()  # vmap hides the layout
    if wide != dtype:
        mixed = x.is_cpu and not transformed and not is_compiling()
        weight = torch.ones(x.shape[1], dtype=wide, device=x.device) if weight is None else weight.to(wide)
        bias = None if bias is None else bias.to(wide)
        x = x if mixed else x.to(wide)
    y = aten_group_norm(x.contiguous(), groups, weight, bias, eps).to(dtype)
    return y if transformed else arranged(y, layout_of(x))


def group_statistics(x: Tensor, groups: int, eps: float) -> Statistics:
    """Mean and ``1 / sqrt(var + eps)`` of each group, ``[N, G]``, in at least float32."""
    means, variances = (t.unflatten(1, (groups, -1)) for t in map_moments(x.to(accumulation_dtype(x.dtype))))
    mean = means.mean(2)
    variance = (variances + (means - mean.unsqueeze(2)).square()).mean(2)
    return mean, inverse_deviation(variance, eps)


def inverse_deviation(variance: Tensor, eps: float) -> Tensor:
    """``1 / sqrt(variance + eps)``, and NaN where the variance has overflowed: 0 would hide that training diverged."""
    return (variance + eps).rsqrt() + 0 * variance


def group_norm_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    groups: int,
    activation: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """``(dx, dweight, dbias)``, spelled out for where there is no autograd; the last two in the dtype of ``mean``."""
    dtype, positions = mean.dtype, tuple(range(2, x.dim()))
    by = per_channel_of_group(rstd, x)
    xhat = (x.to(dtype) - per_channel_of_group(mean, x)) * by
    d = activation_gradient(dy.to(dtype), affine(xhat, weight, bias), activation)
    g = affine(d, weight, None)

    def average(t: Tensor) -> Tensor:
        return per_channel_of_group(t.unflatten(1, (groups, -1)).flatten(2).mean(2), x)

    dx = by * (g - average(g) - xhat * average(g * xhat))
    over = (0, *positions)
    return dx.to(x.dtype), (d * xhat).sum(over), d.sum(over)


def per_channel_of_group(numbers: Tensor, x: Tensor) -> Tensor:
    """``[N, G]`` numbers as ``[N, C, 1, ...]``, which broadcast against ``x[N, C, *]``."""
    return per_map(numbers.repeat_interleave(x.shape[1] // numbers.shape[1], 1), x)


def _apply(x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    wide = x.to(accumulation_dtype(x.dtype))
    return affine((wide - per_channel_of_group(mean, x)) * per_channel_of_group(rstd, x), weight, bias)
