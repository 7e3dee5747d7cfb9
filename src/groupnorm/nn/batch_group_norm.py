"""Batch Group Normalization (Zhou et al. 2020): batch norm over parts of the merged channels and positions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from groupnorm.errors import DivisibilityError
from groupnorm.nn.base import BatchTypeNorm, check_count, check_several, upcast
from groupnorm.ops.moments import pool
from groupnorm.sets import ALL, Blocks, SharedSet


class BatchGroupNorm(BatchTypeNorm):
    r"""Batch norm whose channels are ``num_groups`` equal parts of the merged axis of channels and positions.

    .. math:: y = \frac{x - \mu_g}{\sqrt{\sigma^2_g + \epsilon}} \gamma_c + \beta_c

    with mean and biased variance of the part ``g`` over the batch: the axes ``(C, H, W)`` are flattened, channels
    outermost, and cut into parts of ``C * H * W / num_groups`` neighbours. Few parts give a statistic many elements
    when the batch has few samples; with ``num_groups=C`` it is batch norm. The running statistics are batch norm's,
    but one number for each part, ``[num_groups]``: they serve inputs of any size that divides into as many parts.

    Args:
        num_features: number of channels ``C`` of the input.
        num_groups: parts of the merged axis; divides ``C * H * W`` of each input. Default: 16.
        eps: added to the variance, inside the square root. Default: 1e-5.
        momentum: weight of a batch in the running statistics; None averages. Default: 0.1.
        affine: learn a scale and a shift per channel. Default: True.
        device: of the parameters and buffers.
        dtype: of the parameters and buffers.

    Shape:
        ``(N, C, *)`` in and out.

    Raises:
        ArgumentError: a number below 1, or an ``eps`` or ``momentum`` that cannot be.
        ShapeError: the input has fewer than two axes or not ``num_features`` channels.
        DivisibilityError: channels times positions of the input do not divide into equal parts.
        DtypeError: the input is not floating point.
        SingleElementError: in training, a part has one element in the batch.

    Source: Zhou et al. 2020 (arXiv:2012.02782).
    """

    def __init__(
        self,
        num_features: int,
        num_groups: int = 16,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_count("num_groups", num_groups)
        super().__init__(num_features, eps, momentum, affine, device=device, dtype=dtype)
        self.num_groups = num_groups
        self.running_mean = self.running_mean.new_empty(num_groups)
        self.running_var = self.running_var.new_empty(num_groups)
        self.reset_running_stats()
        self._parts = SharedSet(ALL, Blocks(count=num_groups))

    def normalize_batch(self, x: Tensor) -> Tensor:
        size = self._part_size(x.shape)
        elements = len(x) * size
        check_several(elements, x.shape)
        # The merged axis takes the place of the channels, and the batch that of the positions.
        variance, mean = torch.var_mean(x, dim=0, correction=0)
        mean, variance = pool(mean.reshape(1, -1), variance.reshape(1, -1), self._parts)
        self.update_running(mean[0, ::size], variance[0, ::size] * elements / (elements - 1))
        return self._normalize(x, mean, variance)

    def normalize_running(self, x: Tensor) -> Tensor:
        shape = self.num_groups, self._part_size(x.shape)
        return self._normalize(x, *(upcast(s)[:, None].expand(shape) for s in (self.running_mean, self.running_var)))

    def _normalize(self, x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        """``x`` by statistics of each place of the merged axis."""
        shape = 1, *x.shape[1:]
        return (x - mean.reshape(shape)) * (variance + self.eps).rsqrt().reshape(shape)

    def _part_size(self, shape: torch.Size) -> int:
        places = math.prod(shape[1:])
        if places % self.num_groups:
            raise DivisibilityError(places, self.num_groups, axis=f"channels x positions of the input {tuple(shape)}")
        return places // self.num_groups

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, num_groups={self.num_groups}"
