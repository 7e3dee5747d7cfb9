"""Batch Normalization with statistics that stay what they are, for fine-tuning (He, Zhang, Ren & Sun 2016)."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from groupnorm.nn.base import BatchTypeNorm, check_channels


class FrozenBatchNorm(BatchTypeNorm):
    r"""Batch norm that computes in training what it computes in evaluation, with running statistics that never move.

    .. math:: y = \frac{x - \mu_c}{\sqrt{\sigma^2_c + \epsilon}} \gamma_c + \beta_c

    with mean :math:`\mu` and variance :math:`\sigma^2` of an earlier training, which come with a state_dict of batch
    norm or with :func:`groupnorm.convert`. In a new layer they are 0 and 1. Scale and shift learn; where they should
    not, as in Detectron2, set ``requires_grad_(False)``.

    Args:
        num_features: number of channels ``C`` of the input.
        eps: added to the variance, inside the square root. Default: 1e-5.
        affine: have a scale and a shift per channel. Default: True.
        **options: ``device`` and ``dtype``.

    Shape:
        ``(N, C, *)`` in and out.

    Raises:
        ArgumentError: a negative ``eps``, or ``num_features`` below 1.
        ShapeError: the input has fewer than two axes or not ``num_features`` channels.
        DtypeError: the input is not floating point.

    Example::

        >>> model = groupnorm.convert(torchvision.models.resnet50(weights="DEFAULT"), "frozen")

    Source: He, Zhang, Ren & Sun 2016 (arXiv:1512.03385), appendix A.
    """

    def __init__(self, num_features: int, eps: float = 1e-5, affine: bool = True, **options: Any) -> None:
        super().__init__(num_features, eps, affine=affine, **options)

    def forward(self, input: Tensor) -> Tensor:
        check_channels(input, self.num_features)
        return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, affine={self.affine}"
