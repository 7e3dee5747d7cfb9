"""Group normalisation as a function: arguments are checked here once, then the computation is ATen's."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor

from groupnorm.errors import (
    ArgumentError,
    DivisibilityError,
    DtypeError,
    ShapeError,
    SingleElementError,
    UnknownNameError,
    divisors,
)

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "silu": F.silu, "gelu": F.gelu}
"""Activations that can follow the normalisation; "gelu" is the exact (erf) form."""


@torch.fx.wrap  # a leaf to symbolic tracing, as torch's own: the checks look at shapes
def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
) -> Tensor:
    """Group Normalization, as :func:`torch.nn.functional.group_norm`, optionally followed by an activation.

    A group with a single element is computed, not refused: its output is ``activation(bias)``. The module
    :class:`groupnorm.GroupNorm` refuses it in training. NaN and inf pass through as in torch.

    Args:
        input: ``[N, C, *]``, floating point, at least two axes.
        num_groups: number of groups ``G``; divides ``C``.
        weight: scale per channel ``[C]``; None is 1.
        bias: shift per channel ``[C]``; None is 0.
        eps: added to the biased variance, inside the square root; not negative. Default: 1e-5.
        activation: None, "relu", "silu" or "gelu" (exact). Default: None.

    Returns:
        A tensor of the shape, dtype and device of ``input``.

    Raises:
        ShapeError: fewer than two axes, or a weight or bias that is not ``[C]``.
        DivisibilityError: ``num_groups`` does not divide ``C``.
        DtypeError: ``input`` is not floating point.
        ArgumentError: ``num_groups`` below 1 or a negative ``eps``.
        UnknownNameError: an unknown ``activation``.

    Source: Wu & He 2018 (arXiv:1803.08494), eqs. 1, 2, 6 and 7.
    """
    check_input(input)
    num_channels = input.shape[1]
    check_groups(num_groups, num_channels)
    check_eps(eps)
    check_activation(activation)
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is not None and parameter.shape != (num_channels,):
            raise ShapeError(
                f"{name} has shape {tuple(parameter.shape)}; expected ({num_channels},), "
                f"one value for each channel of the input {tuple(input.shape)}"
            )
    y = torch.group_norm(input, num_groups, weight, bias, eps)
    return y if activation is None else ACTIVATIONS[activation](y)


def check_input(input: Tensor) -> None:
    """Raise unless ``input`` is a floating point tensor ``[N, C, *]``."""
    if not isinstance(input, Tensor):
        raise DtypeError(f"input is of type {type(input).__name__}; expected a torch.Tensor: use torch.as_tensor(x)")
    if input.dim() < 2:
        raise ShapeError(
            f"input has shape {tuple(input.shape)}, rank {input.dim()}; expected (N, C, *) with at least two "
            f"axes: add the batch axis with x.unsqueeze(0)"
        )
    if not input.is_floating_point():
        remedy = "normalise x.real and x.imag" if input.is_complex() else "convert it with x.float()"
        raise DtypeError(f"input has dtype {input.dtype}; expected a floating point dtype: {remedy}")


def check_groups(num_groups: int, num_channels: int) -> None:
    """Raise unless ``num_channels`` splits into ``num_groups`` equal groups."""
    check_integer("num_groups", num_groups)
    if num_groups < 1:
        raise ArgumentError(f"num_groups={num_groups}; expected at least 1 (1 is layer norm over C, H, W)")
    if num_channels % num_groups:
        raise DivisibilityError(num_channels, num_groups)


def check_eps(eps: float) -> None:
    """Raise unless ``eps`` is a finite number that is not negative, so that var + eps has a square root."""
    if not isinstance(eps, (int, float)) or not 0 <= eps < math.inf:
        raise ArgumentError(f"eps={eps!r}; expected a finite number >= 0: the default is 1e-5")


def check_integer(name: str, value: object) -> None:
    """Raise unless ``value`` is an integer."""
    if not isinstance(value, (int, torch.SymInt)) or isinstance(value, bool):
        raise ArgumentError(f"{name}={value!r} is of type {type(value).__name__}; expected an integer: use int(...)")


def check_activation(activation: str | None) -> None:
    """Raise unless ``activation`` is None or one of :data:`ACTIVATIONS`."""
    if activation is not None and not (isinstance(activation, str) and activation in ACTIVATIONS):
        raise UnknownNameError("activation", str(activation), ACTIVATIONS)


def check_group_elements(shape: torch.Size, num_groups: int) -> None:
    """Raise when each group of an input of ``shape`` has a single element, so that the output is constant."""
    elements = shape[1] // num_groups
    for length in shape[2:]:
        elements *= length
    if elements == 1:
        fewer = [d for d in divisors(shape[1]) if d < num_groups]
        remedy = f"num_groups from {fewer}, or larger feature maps" if fewer else "larger feature maps"
        raise SingleElementError(
            f"input {tuple(shape)} with num_groups={num_groups} has 1 element per group, so the output is the "
            f"bias whatever the input; expected at least 2: use {remedy}"
        )
