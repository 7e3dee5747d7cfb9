"""Ghost Batch Normalization (Hoffer, Hubara & Soudry 2017)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from groupnorm.nn.base import BatchTypeNorm, check_count, check_several


class GhostBatchNorm(BatchTypeNorm):
    r"""Batch norm over chunks of the batch: the regularising noise of a small batch in a large one.

    .. math:: y = \frac{x - \mu_{b,c}}{\sqrt{\sigma^2_{b,c} + \epsilon}} \gamma_c + \beta_c

    with mean and biased variance of the chunk ``b`` of ``ghost_size`` neighbouring samples. The last chunk holds what
    is left. The running statistics are updated chunk by chunk, in order, with the unbiased variance as batch norm's;
    evaluation is that of batch norm.

    Args:
        num_features: number of channels ``C`` of the input.
        ghost_size: samples of a chunk. Default: 16 (Summers & Dinneen 2020; the source uses 128 of 4096).
        eps: added to the variance, inside the square root. Default: 1e-5.
        momentum: weight of a chunk in the running statistics; None averages. Default: 0.1.
        affine: learn a scale and a shift per channel. Default: True.
        device: of the parameters and buffers.
        dtype: of the parameters and buffers.

    Shape:
        ``(N, C, *)`` in and out.

    Raises:
        ArgumentError: a size below 1, or an ``eps`` or ``momentum`` that cannot be.
        ShapeError: the input has fewer than two axes or not ``num_features`` channels.
        DtypeError: the input is not floating point.
        SingleElementError: in training, a chunk has one element per channel.

    Source: Hoffer et al. 2017 (arXiv:1705.08741), algorithm 1.
    """

    def __init__(
        self,
        num_features: int,
        ghost_size: int = 16,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_count("ghost_size", ghost_size)
        super().__init__(num_features, eps, momentum, affine, device=device, dtype=dtype)
        self.ghost_size = ghost_size

    def normalize_batch(self, x: Tensor) -> Tensor:
        rest = len(x) % self.ghost_size or self.ghost_size
        last = x[-rest:]
        check_several(len(last) * math.prod(x.shape[2:]), last.shape)  # before anything moves
        batch_norm = super().normalize_batch
        return torch.cat([batch_norm(chunk) for chunk in x.split(self.ghost_size)])

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, ghost_size={self.ghost_size}"
