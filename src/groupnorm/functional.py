"""Group normalisation as functions: arguments are checked here once, then a backend computes."""

from __future__ import annotations

import functools

import torch
import torch.fx
from torch import Tensor

from groupnorm.ops import dispatch
from groupnorm.ops.activation import ACTIVATIONS
from groupnorm.ops.backends import AUTO, Explanation, check_name
from groupnorm.ops.checks import (
    as_integer,
    check_activation,
    check_device,
    check_eps,
    check_groups,
    check_input,
    check_layout,
    check_like,
    check_out,
    check_parameters,
    checked_mask,
    checked_statistics,
)
from groupnorm.ops.dispatch import compute, needs_grad
from groupnorm.ops.spec import Spec, arranged, layout_of
from groupnorm.ops.watched import watched

_Facts = tuple[torch.device, torch.dtype, torch.Size, torch.layout]  # of a parameter

__all__ = ["ACTIVATIONS", "explain", "group_norm", "group_norm_statistics"]


@torch.fx.wrap  # a leaf to symbolic tracing, as torch's own: the checks look at shapes
def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
    statistics: tuple[Tensor, Tensor] | None = None,
    mask: Tensor | None = None,
    out: Tensor | None = None,
    backend: str = AUTO,
) -> Tensor:
    r"""Group Normalization, as :func:`torch.nn.functional.group_norm`, and what is fused with it.

    .. math:: y = f\\left(\\frac{x - \\mathrm{E}[x]}{\\sqrt{\\mathrm{Var}[x] + \\epsilon}} \\gamma + \\beta\\right)

    with mean and biased variance over the channels of a group and all positions of one sample. Memory kept for the
    backward pass is ``input`` (or ``input + residual``) and two numbers a group; the activation is computed again.
    A group with a single element is computed, not refused: its output is ``activation(bias)``. The module
    :class:`groupnorm.GroupNorm` refuses it in training. NaN and inf pass through as in torch.

    Args:
        input: ``[N, C, *]``, floating point, at least two axes. Channels-last stays channels-last.
        num_groups: number of groups ``G``; divides ``C``.
        weight: scale per channel ``[C]``; None is 1. Of the dtype of ``input``, or float32 for a half precision.
        bias: shift per channel ``[C]``; None is 0.
        eps: added to the biased variance, inside the square root; not negative. Default: 1e-5.
        activation: None, "relu", "silu", "gelu" (exact) or "gelu_tanh". Default: None.
        residual: added to ``input`` before the normalisation; of its shape, dtype and device.
        statistics: ``(mean, rstd)``, ``[N, G]`` each, to apply instead of those of ``input``, as from
            :func:`group_norm_statistics`. Gradients flow to them.
        mask: boolean ``[N, *]``, the axes of ``input`` but the channels (or 1 for any of them); True where a position
            is valid. Statistics are those of the valid positions, and the output is 0 at the others, whatever stood
            there.
        out: receives the output, which is returned; may be ``input``. Only where no gradient is needed.
        backend: "auto" takes the fastest that can; a name ("reference", "native", "cpu", "triton") takes that one or
            raises. :func:`groupnorm.explain` tells which one runs.

    Returns:
        A tensor of the shape, dtype and device of ``input``, under autocast too.

    Raises:
        ShapeError: fewer than two axes, or another argument whose shape does not fit.
        DivisibilityError: ``num_groups`` does not divide ``C``.
        DtypeError: ``input`` is not floating point, or the dtype of another argument does not fit.
        DeviceError: another argument is not where ``input`` is.
        ArgumentError: ``num_groups`` below 1, a negative ``eps``, arguments that exclude each other.
        UnknownNameError: an unknown ``activation`` or ``backend``.
        BackendError: the backend that was named cannot run this call.

    Source: Wu & He 2018 (arXiv:1803.08494), eqs. 1, 2, 6 and 7.
    """
    plain = residual is None and statistics is None and mask is None and out is None and input is not None
    if plain and not watched(input, weight, bias) and input.layout is torch.strided:
        try:
            of_weight = None if weight is None else (weight.device, weight.dtype, weight.shape, weight.layout)
            of_bias = None if bias is None else (bias.device, bias.dtype, bias.shape, bias.layout)
            layout = layout_of(input)
            spec, name, eps = _checked(
                input.device,
                input.dtype,
                input.shape,
                layout,
                num_groups,
                eps,
                activation,
                needs_grad(input, weight, bias),
                backend,
                of_weight,
                of_bias,
            )
        except (TypeError, RuntimeError):  # not hashable, or not dense: the checks below say which argument is wrong
            pass
        else:
            return compute(spec, name, arranged(input, layout), weight, bias, eps)
    _check(input, num_groups, weight, bias, eps, activation, backend)
    num_groups, eps = as_integer(num_groups), float(eps)
    if residual is not None:
        check_like("residual", residual, input)
    if statistics is not None:
        statistics = checked_statistics(statistics, input, num_groups)
    if out is not None:
        check_like("out", out, input)
        check_out(out, input, residual, weight, bias, *(statistics or ()))
    if mask is not None:
        return _masked(input, num_groups, weight, bias, eps, activation, residual, statistics, mask, out, backend)
    return dispatch.group_norm(
        input,
        num_groups,
        weight,
        bias,
        eps,
        activation,
        residual=residual,
        statistics=statistics,
        out=out,
        backend=backend,
    )


def group_norm_statistics(
    input: Tensor,
    num_groups: int,
    eps: float = 1e-5,
    *,
    mask: Tensor | None = None,
    backend: str = AUTO,
) -> tuple[Tensor, Tensor]:
    """Mean and ``1 / sqrt(var + eps)`` of each group, to be applied by ``group_norm(..., statistics=)``.

    An image too large for one pass is normalised tile by tile with the statistics of the whole.

    Args:
        input: ``[N, C, *]``, floating point, at least two axes.
        num_groups: number of groups ``G``; divides ``C``.
        eps: added to the biased variance, inside the square root; not negative. Default: 1e-5.
        mask: as of :func:`group_norm`.
        backend: as of :func:`group_norm`.

    Returns:
        ``(mean, rstd)``, ``[N, G]`` each, in float32, or float64 for float64 inputs. Gradients flow through them.

    Raises:
        GroupNormError: as :func:`group_norm`.
    """
    check_input(input)
    check_groups(num_groups, input.shape[1])
    check_eps(eps)
    check_name(backend)
    if mask is not None:
        mask = checked_mask(mask, input)
    return dispatch.group_statistics(input, as_integer(num_groups), float(eps), mask=mask, backend=backend)


def explain(
    input: Tensor,
    num_groups: int,
    *,
    activation: str | None = None,
    backend: str = AUTO,
) -> Explanation:
    """Which backend runs :func:`group_norm` on this input, and why each other one does not. Computes nothing.

    Args:
        input: ``[N, C, *]``; whether it requires a gradient is looked at.
        num_groups: number of groups ``G``.
        activation: as of :func:`group_norm`.
        backend: as of :func:`group_norm`.

    Returns:
        What was chosen and the reasons; printed, a line for each backend.

    Raises:
        GroupNormError: as :func:`group_norm`.

    Example::

        >>> print(groupnorm.explain(torch.randn(2, 320, 64, 64), 32, activation="silu"))
    """
    check_input(input)
    check_groups(num_groups, input.shape[1])
    check_activation(activation)
    return dispatch.explanation(input, as_integer(num_groups), activation, backend)


@functools.lru_cache(maxsize=4096, typed=True)
def _checked(
    device: torch.device,
    dtype: torch.dtype,
    shape: torch.Size,
    layout: str,
    num_groups: int,
    eps: float,
    activation: str | None,
    grad: bool,
    backend: str,
    of_weight: _Facts | None,
    of_bias: _Facts | None,
) -> tuple[Spec, str, float]:
    """What is asked of a backend, which one runs it, and eps as a float.

    All calls of a kind are checked once, since that takes longer than the norm of a small tensor.
    """
    for name, of in (("weight", of_weight), ("bias", of_bias)):
        if of is not None:
            check_device(name, of[0], device)
            check_layout(name, of[3])
    input = torch.empty(shape, dtype=dtype, device="meta")
    weight, bias = (None if p is None else torch.empty(p[2], dtype=p[1], device="meta") for p in (of_weight, of_bias))
    _check(input, num_groups, weight, bias, eps, activation, backend)
    return *dispatch.choose(device, dtype, shape, layout, as_integer(num_groups), activation, grad, backend), float(eps)


def _check(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    backend: str,
) -> None:
    check_input(input)
    check_groups(num_groups, input.shape[1])
    check_eps(eps)
    check_activation(activation)
    check_name(backend)
    check_parameters(input, weight, bias)


def _masked(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    residual: Tensor | None,
    statistics: tuple[Tensor, Tensor] | None,
    mask: Tensor,
    out: Tensor | None,
    backend: str,
) -> Tensor:
    """Padding is set to 0 before, so that whatever stands there spreads neither forward nor backward, and after."""
    padding = ~checked_mask(mask, input)
    x = input if residual is None else input + residual
    x = torch.where(padding, 0, x)  # keeps channels-last, which masked_fill does not
    if statistics is None:
        statistics = dispatch.group_statistics(x, num_groups, eps, mask=~padding, backend=backend)
    y = dispatch.group_norm(
        x, num_groups, weight, bias, eps, activation, statistics=statistics, out=out, backend=backend
    )
    return torch.where(padding, 0, y) if out is None else out.masked_fill_(padding, 0)
