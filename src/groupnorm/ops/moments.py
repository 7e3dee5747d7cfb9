"""Means and variances of sets that hold whole feature maps, pooled from those of each sample and channel.

One pass over the data gives the moments of every map ``x[n, c]``; all else is arithmetic on ``[N, C]`` numbers, so the
layout of ``x`` is kept, and one pass serves several sets. The variance is pooled from squared deviations (Chan et al.
1983), not as E[x^2] - mean^2, which cancels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from groupnorm.sets import SharedSet

_MEMBERS = (1, 3)


def map_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each map: ``x[N, C, *]`` -> two tensors ``[N, C]``."""
    if x.dim() == 2:
        return x, torch.zeros_like(x)
    positions = tuple(range(2, x.dim()))
    if x.numel() == 0:  # of which torch warns
        return x.sum(positions), x.sum(positions)
    variance, mean = torch.var_mean(x, dim=positions, correction=0)
    return mean, variance


def pool(mean: Tensor, variance: Tensor, shared: SharedSet) -> tuple[Tensor, Tensor]:
    """Moments of sets from those of the maps that form them.

    Args:
        mean: of each map, ``[N, C]``.
        variance: of each map, biased, ``[N, C]``.
        shared: sets of whole maps: ``positions`` is ``ALL``, and nothing is merged.

    Returns:
        ``(mean, variance)`` of the set of each map, ``[N, C]``.
    """
    means = mean.view(shared.blocks(mean.shape)[:4])
    pooled = means.mean(_MEMBERS, keepdim=True)
    spread = (variance.view(means.shape) + (means - pooled).square()).mean(_MEMBERS, keepdim=True)
    return pooled.expand_as(means).reshape(mean.shape), spread.expand_as(means).reshape(mean.shape)


def second_moment(x: Tensor) -> Tensor:
    """Mean of the squares of each map: ``x[N, C, *]`` -> ``[N, C]``."""
    return x.square() if x.dim() == 2 else x.square().mean(tuple(range(2, x.dim())))


def per_map(numbers: Tensor, x: Tensor) -> Tensor:
    """``[N, C]`` or ``[1, C]`` numbers as a view that broadcasts against ``x[N, C, *positions]``."""
    return numbers.view(*numbers.shape, *[1] * (x.dim() - 2))
