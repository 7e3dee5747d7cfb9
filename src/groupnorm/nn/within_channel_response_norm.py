"""Local response normalisation within a channel (Caffe; Jia et al. 2014)."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from groupnorm.errors import ArgumentError, ShapeError
from groupnorm.nn.base import check_count, upcast
from groupnorm.ops.checks import check_input

_POOLS = {3: F.avg_pool1d, 4: F.avg_pool2d, 5: F.avg_pool3d}


class WithinChannelResponseNorm(nn.Module):
    r"""Damps a number where those around it, in its own channel, are large; Caffe's ``WITHIN_CHANNEL``.

    .. math:: y = x \, (1 + \alpha \, \overline{x^2})^{-\beta}

    with the mean of the squares over the window of ``size`` positions a side around it. Positions beyond the border
    count as zeros, so the mean always divides by ``size`` to the power of the spatial axes. No parameters; training
    and evaluation compute the same. :class:`torch.nn.LocalResponseNorm` is the norm across channels.

    Args:
        size: positions a side of the window; odd. Default: 5.
        alpha: weight of the mean square; not negative. Default: 1.
        beta: exponent; not negative. Default: 0.75.

    Shape:
        ``(N, C, L)``, ``(N, C, H, W)`` or ``(N, C, D, H, W)`` in and out.

    Raises:
        ArgumentError: an even size or one below 1, or a negative ``alpha`` or ``beta``.
        ShapeError: the input has no spatial axis, or more than three.
        DtypeError: the input is not floating point.

    Source: Caffe (Jia et al. 2014, arXiv:1408.5093), ``LRNParameter`` with ``norm_region: WITHIN_CHANNEL``.
    """

    __constants__ = ("alpha", "beta", "size")

    def __init__(self, size: int = 5, alpha: float = 1.0, beta: float = 0.75) -> None:
        super().__init__()
        check_count("size", size)
        if size % 2 == 0:
            raise ArgumentError(f"size={size}; expected an odd number, so that the window has a centre: use {size + 1}")
        for name, value in (("alpha", alpha), ("beta", beta)):
            if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise ArgumentError(f"{name}={value!r}; expected a finite number >= 0: Caffe's are alpha=1, beta=0.75")
        self.size, self.alpha, self.beta = size, alpha, beta

    def forward(self, input: Tensor) -> Tensor:
        check_input(input)
        if input.dim() not in _POOLS:
            raise ShapeError(
                f"input has shape {tuple(input.shape)}, {input.dim() - 2} spatial axes; expected 1 to 3, in which the "
                f"window lies: flatten further ones, or use torch.nn.LocalResponseNorm across the channels"
            )
        x = upcast(input)
        squares = F.pad(x.square(), [self.size // 2] * 2 * (x.dim() - 2))  # avg_pool3d's own refuses maps below size
        mean_square = _POOLS[x.dim()](squares, self.size, stride=1)
        return (x * (1 + self.alpha * mean_square) ** -self.beta).to(input.dtype)

    def extra_repr(self) -> str:
        return f"{self.size}, alpha={self.alpha}, beta={self.beta}"
