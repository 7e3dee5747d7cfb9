"""Statistics of the valid positions of padded batches."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from groupnorm.ops.native import inverse_deviation, per_channel_of_group
from groupnorm.ops.spec import accumulation_dtype

Average = Callable[[Tensor], Tensor]


def masked_statistics(
    x: Tensor, groups: int, mask: Tensor, eps: float, average: Average | None = None
) -> tuple[Tensor, Tensor]:
    """Mean and ``1 / sqrt(var + eps)`` over the valid positions of each group, ``[N, G]``, in at least float32.

    A sample without a valid position has mean 0 and variance 0.

    Args:
        x: input ``[N, C, *]``; the values at the other positions are ignored.
        groups: number of groups.
        mask: boolean, broadcasts against ``x[:, :1]``; True where valid.
        eps: added to the variance.
        average: the mean of each group over all positions, ``[N, C, *]`` -> ``[N, G]``. Default: of ATen's operations.
    """
    if average is None:

        def average(t: Tensor) -> Tensor:
            grouped: Tensor = t.unflatten(1, (groups, -1))
            return grouped.flatten(2).mean(2)

    wide = torch.where(mask, x.to(accumulation_dtype(x.dtype)), 0)
    valid = valid_positions(mask, x)
    positions_per_valid = x.shape[2:].numel() / valid.clamp(min=1).to(wide.dtype)
    mean = average(wide) * positions_per_valid
    distances = torch.where(mask, wide - per_channel_of_group(mean, x), 0)
    return mean, inverse_deviation(average(distances.square()) * positions_per_valid, eps)


def valid_positions(mask: Tensor, x: Tensor) -> Tensor:
    """How many positions of each sample are valid, ``[N, 1]``."""
    return mask.expand(x.shape[0], 1, *x.shape[2:]).flatten(1).sum(1, keepdim=True)
