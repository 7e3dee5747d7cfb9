"""Batch-Channel Normalization (Qiao et al. 2019) for large batches: batch norm, then group norm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from groupnorm.nn.base import BatchTypeNorm, check_count
from groupnorm.ops.checks import check_group_elements, check_groups
from groupnorm.ops.moments import map_moments, per_map, pool
from groupnorm.ops.reference import affine
from groupnorm.sets import group_set


class BatchChannelNorm(BatchTypeNorm):
    r"""Group norm of batch norm, each with its own scale and shift.

    .. math:: \dot x = \frac{x - \mu_c}{\sqrt{\sigma^2_c + \epsilon}} \dot\gamma_c + \dot\beta_c, \qquad
              y = \frac{\dot x - \mu_{n,g}}{\sqrt{\sigma^2_{n,g} + \epsilon}} \gamma_c + \beta_c

    with mean and biased variance of the channel ``c`` over the batch, and then of the group ``g`` of channels of one
    sample. ``weight`` and ``bias`` are the scale and shift that come last, :math:`\gamma` and :math:`\beta`, so that a
    network which starts them at 0 to silence a branch does so here too. Those in between are ``batch_weight`` and
    ``batch_bias``. Running statistics are kept of the batch norm; evaluation uses them there, and the sample's own in
    the group norm.

    Args:
        num_features: number of channels ``C`` of the input.
        num_groups: groups of the second step; divides ``num_features``. Default: 32.
        eps: added to both variances, inside the square root. Default: 1e-5.
        momentum: weight of a batch in the running statistics; None averages. Default: 0.1.
        affine: learn both scales and shifts per channel, starting at 1 and 0. Default: True.
        device: of the parameters and buffers.
        dtype: of the parameters and buffers.

    Shape:
        ``(N, C, *)`` in and out.

    Raises:
        ArgumentError: a number below 1, or an ``eps`` or ``momentum`` that cannot be.
        DivisibilityError: the channels do not divide into equal groups.
        ShapeError: the input has fewer than two axes or not ``num_features`` channels.
        DtypeError: the input is not floating point.
        SingleElementError: in training, a channel has one element in the batch, or a group has one in a sample.

    Source: Qiao et al. 2019 (arXiv:1911.09738; arXiv:1903.10520v2 for micro-batches).
    """

    batch_weight: Tensor | None
    batch_bias: Tensor | None

    def __init__(
        self,
        num_features: int,
        num_groups: int = 32,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_count("num_features", num_features)
        check_groups(num_groups, num_features)
        super().__init__(num_features, eps, momentum, affine, device=device, dtype=dtype)
        self.num_groups = num_groups
        self._groups = group_set(num_groups)
        for name in ("batch_weight", "batch_bias"):
            self.register_parameter(name, nn.Parameter(torch.empty_like(self.weight)) if affine else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the scales to 1, the shifts to 0, and the running statistics back."""
        super().reset_parameters()
        for name, start in (("batch_weight", 1.0), ("batch_bias", 0.0)):
            parameter = self._parameters.get(name)  # the base class resets before they are there
            if parameter is not None:
                nn.init.constant_(parameter, start)

    def normalize_batch(self, x: Tensor) -> Tensor:
        check_group_elements(x.shape, self.num_groups)
        return self._normalize_groups(super().normalize_batch(x))

    def normalize_running(self, x: Tensor) -> Tensor:
        return self._normalize_groups(super().normalize_running(x))

    def _normalize_groups(self, x: Tensor) -> Tensor:
        """The second step: the inner affine map, then group norm without one."""
        x = affine(x, self.batch_weight, self.batch_bias)
        mean, variance = pool(*map_moments(x), self._groups)
        return (x - per_map(mean, x)) * per_map((variance + self.eps).rsqrt(), x)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, num_groups={self.num_groups}"
