"""Statistics of the valid positions of padded batches."""

from __future__ import annotations

import torch
from torch import Tensor

from groupnorm.ops.native import per_channel_of_group
from groupnorm.ops.spec import accumulation_dtype


def masked_statistics(x: Tensor, groups: int, mask: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and ``1 / sqrt(var + eps)`` over the valid positions of each group, ``[N, G]``, in at least float32.

    A sample without a valid position has mean 0 and variance 0.

    Args:
        x: input ``[N, C, *]``; what stands at the other positions does not matter.
        groups: number of groups.
        mask: boolean, broadcasts against ``x[:, :1]``; True where valid.
        eps: added to the variance.
    """
    wide = torch.where(mask, x.to(accumulation_dtype(x.dtype)), 0)
    valid = mask.expand(x.shape[0], 1, *x.shape[2:]).flatten(1).sum(1, keepdim=True)
    count = (valid * (x.shape[1] // groups)).clamp(min=1)

    def average(t: Tensor) -> Tensor:
        return t.reshape(t.shape[0], groups, -1).sum(2) / count

    mean = average(wide)
    distances = torch.where(mask, wide - per_channel_of_group(mean, x), 0)
    return mean, (average(distances.square()) + eps).rsqrt()
