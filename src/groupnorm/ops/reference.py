"""The definition, spelled out: slow, two-pass, in the precision of its input.

Everything fast is tested against these functions in float64. Gradients of any order follow by autograd.
"""

from __future__ import annotations

import torch
from torch import Tensor

from groupnorm.sets import SharedSet

_MEMBERS = (1, 3, 5)  # the axes of SharedSet.blocks() that run over the members of a set


def statistics(x: Tensor, shared: SharedSet) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (divided by m, not m - 1) of every set.

    Args:
        x: input ``[N, C, *positions]``, floating point.
        shared: which elements share statistics.

    Returns:
        ``(mean, variance)``, each ``[sample blocks, 1, channel blocks, 1, position blocks, 1]``.
    """
    blocks = x.reshape(shared.blocks(x.shape))
    mean = blocks.mean(_MEMBERS, keepdim=True)
    return mean, (blocks - mean).square().mean(_MEMBERS, keepdim=True)


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
    normalized = (x.reshape(shared.blocks(x.shape)) - mean) / torch.sqrt(variance + eps)
    y = normalized.reshape(x.shape)
    per_channel = (1, -1) + (1,) * (x.dim() - 2)
    if weight is not None:
        y = y * weight.view(per_channel)
    return y if bias is None else y + bias.view(per_channel)
