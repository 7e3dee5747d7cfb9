"""The definition, spelled out: slow, two-pass, in the precision of its input.

Everything fast is tested against these functions in float64. Gradients of any order follow by autograd.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from groupnorm.sets import SharedSet, Window

_MEMBERS = (1, 3, 5)  # the axes of SharedSet.blocks() that run over the members of a set


def average(x: Tensor, shared: SharedSet) -> Tensor:
    """The mean over the set of each element: ``1/m * sum of x_k over k in S_i``.

    Args:
        x: input ``[N, C, *positions]``, floating point.
        shared: which elements share statistics.

    Returns:
        A tensor of the shape of ``x``; elements that share statistics have the same value.
    """
    if not shared.windows:
        blocks = x.reshape(shared.blocks(x.shape))
        return blocks.mean(_MEMBERS, keepdim=True).expand_as(blocks).reshape(x.shape)
    for axis in range(1, x.dim()):
        window = shared.channels if axis == 1 else shared.positions
        if isinstance(window, Window):
            padded = F.pad(x.movedim(axis, -1), window.reach)
            x = padded.unfold(-1, window.size, 1).mean(-1).movedim(-1, axis)
    return x


def statistics(x: Tensor, shared: SharedSet) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (divided by m, not m - 1) of the set of each element.

    Args:
        x: input ``[N, C, *positions]``, floating point.
        shared: which elements share statistics; not windows, within which the mean is not one number.

    Returns:
        ``(mean, variance)``, each of the shape of ``x``.
    """
    mean = average(x, shared)
    return mean, average((x - mean).square(), shared)


def per_channel(parameter: Tensor, x: Tensor) -> Tensor:
    """A parameter ``[C]`` as a view that broadcasts against ``x[N, C, *positions]``."""
    return parameter.view(1, -1, *[1] * (x.dim() - 2))


def affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """``x * weight + bias`` with parameters per channel ``[C]``; None is 1, and 0."""
    if weight is not None:
        x = x * per_channel(weight, x)
    return x if bias is None else x + per_channel(bias, x)


def normalize(
    x: Tensor,
    shared: SharedSet,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """``(x - mean) / sqrt(var + eps) * weight + bias`` with the statistics of each element's set.

    Args:
        x: input ``[N, C, *positions]``, floating point.
        shared: which elements share statistics.
        weight: scale per channel ``[C]``; None is 1.
        bias: shift per channel ``[C]``; None is 0.
        eps: added to the variance, inside the square root.

    Returns:
        A tensor of the shape of ``x``.

    Source: Wu & He 2018 (arXiv:1803.08494), eqs. 1, 2 and 6.
    """
    mean, variance = statistics(x, shared)
    return affine((x - mean) / torch.sqrt(variance + eps), weight, bias)
