"""Switchable Normalization (Luo et al. 2019): a learned mixture of instance, layer and batch norm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from groupnorm.nn.base import BatchTypeNorm, check_several, upcast
from groupnorm.ops.moments import map_moments, per_map, pool
from groupnorm.sets import batch_set, layer_set

_LAYER, _BATCH = layer_set(), batch_set()
_Moments = tuple[Tensor, Tensor]


class SwitchableNorm(BatchTypeNorm):
    r"""Normalises by a mixture of three means and a mixture of three variances, whose weights are learned.

    .. math:: y = \frac{x - \sum_k w_k \mu_k}{\sqrt{\sum_k w'_k \sigma^2_k + \epsilon}} \gamma_c + \beta_c, \qquad
              w = \mathrm{softmax}(\lambda), \quad w' = \mathrm{softmax}(\lambda')

    with means and biased variances of instance, layer and batch norm, in this order. ``mean_weight`` and
    ``var_weight`` are :math:`\lambda` and :math:`\lambda'`, three numbers for the whole layer, all 1 at the start.
    Running statistics are kept of the batch's, as batch norm keeps them; in evaluation they take its place in the
    mixture. On 1x1 maps the variance of instance norm is 0 and its mean is the element; the mixture still normalises.

    Args:
        num_features: number of channels ``C`` of the input.
        eps: added to the mixed variance, inside the square root. Default: 1e-5.
        momentum: weight of a batch in the running statistics; None averages. Default: 0.1.
        affine: learn a scale and a shift per channel. The mixture is learned in any case. Default: True.
        device: of the parameters and buffers.
        dtype: of the parameters and buffers.

    Shape:
        ``(N, C, *)`` in and out.

    Raises:
        ArgumentError: an ``eps`` or ``momentum`` that cannot be.
        ShapeError: the input has fewer than two axes or not ``num_features`` channels.
        DtypeError: the input is not floating point.
        SingleElementError: in training, the batch has one element per channel.

    Source: Luo et al. 2019 (arXiv:1806.10779).
    """

    mean_weight: Tensor
    var_weight: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, device=device, dtype=dtype)
        self.mean_weight = nn.Parameter(torch.empty(3, device=device, dtype=dtype))
        self.var_weight = nn.Parameter(torch.empty(3, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weigh the three norms alike, set the scale to 1, the shift to 0, and the running statistics back."""
        super().reset_parameters()
        for name in ("mean_weight", "var_weight"):
            if name in self._parameters:  # the base class resets before they are there
                nn.init.ones_(getattr(self, name))

    def normalize_batch(self, x: Tensor) -> Tensor:
        elements = _BATCH.size(x.shape)
        check_several(elements, x.shape)
        instance = map_moments(x)
        mean, variance = pool(*instance, _BATCH)
        self.update_running(mean[0], variance[0] * elements / (elements - 1))
        return self._normalize(x, instance, (mean, variance))

    def normalize_running(self, x: Tensor) -> Tensor:
        # copies, because a training pass before the backward pass moves the running statistics
        running = upcast(self.running_mean)[None].clone(), upcast(self.running_var)[None].clone()
        return self._normalize(x, map_moments(x), running)

    def _normalize(self, x: Tensor, instance: _Moments, batch: _Moments) -> Tensor:
        """``x`` by the mixture; the moments are ``[N, C]``, or ``[1, C]`` of a batch."""
        layer = pool(*instance, _LAYER)
        mean = _mix(self.mean_weight, instance[0], layer[0], batch[0])
        variance = _mix(self.var_weight, instance[1], layer[1], batch[1])
        return (x - per_map(mean, x)) * per_map((variance + self.eps).rsqrt(), x)


def _mix(weight: Tensor, instance: Tensor, layer: Tensor, batch: Tensor) -> Tensor:
    """A moment of the three norms, weighed by the softmax of ``weight``."""
    w = upcast(weight).softmax(0)
    return w[0] * instance + w[1] * layer + w[2] * batch
