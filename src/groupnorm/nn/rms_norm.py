"""Root Mean Square Layer Normalization (Zhang & Sennrich 2019)."""

from __future__ import annotations

import torch
from torch import Tensor

from groupnorm.errors import SingleElementError
from groupnorm.nn.base import SampleNorm
from groupnorm.ops.moments import per_map, second_moment
from groupnorm.sets import layer_set

_SAMPLE = layer_set()


class RMSNorm(SampleNorm):
    r"""Layer norm over (C, H, W) without its mean: scales by the root mean square, with a gain and no bias.

    .. math:: y = \frac{x}{\sqrt{\overline{x^2} + \epsilon}} \gamma_c

    with the mean of the squares over all channels and positions of a sample. Training and evaluation compute the
    same. On ``(N, C)`` it is the source's norm and :class:`torch.nn.RMSNorm`; for ``(batch, tokens, features)``, where
    the features come last, use torch's.

    The sources disagree about ``eps``: the authors' code divides by ``rms + 1e-8``, torch and LLaMA have it inside
    the root. It is inside here, and 1e-5 as in the other norms, so that "rms" and "ln" differ in mean and bias alone.

    Args:
        num_channels: number of channels ``C`` of the input.
        eps: added to the mean square, inside the square root. Default: 1e-5.
        affine: learn a gain per channel, starting at 1. Default: True.
        device: of the parameters.
        dtype: of the parameters.

    Shape:
        ``(N, C, *)`` in and out.

    Raises:
        ArgumentError: ``num_channels`` below 1 or a negative ``eps``.
        ShapeError: the input has fewer than two axes or not ``num_channels`` channels.
        DtypeError: the input is not floating point.
        SingleElementError: in training, a sample has one element, of which only the sign would be left.

    Source: Zhang & Sennrich 2019 (arXiv:1910.07467), eq. 4.
    """

    def __init__(
        self,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_channels, eps, affine, bias=False, device=device, dtype=dtype)

    def normalize(self, x: Tensor) -> Tensor:
        if self.training and _SAMPLE.size(x.shape) == 1:
            raise SingleElementError(
                f"input {tuple(x.shape)} has 1 element per sample, so the output is its sign times the gain; expected "
                f"at least 2: use more channels or larger feature maps"
            )
        mean_square = second_moment(x).mean(1, keepdim=True)
        return x * per_map((mean_square + self.eps).rsqrt(), x)
