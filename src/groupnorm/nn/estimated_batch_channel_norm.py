"""Batch-Channel Normalization (Qiao et al. 2019) for micro-batches: estimated batch norm, then group norm."""

from __future__ import annotations

import torch
from torch import Tensor

from groupnorm.nn.base import check_count, refuse_recomputation, upcast
from groupnorm.nn.batch_channel_norm import BatchChannelNorm
from groupnorm.ops.checks import check_group_elements
from groupnorm.ops.moments import map_moments, pool
from groupnorm.sets import batch_set

_BATCH = batch_set()


class EstimatedBatchChannelNorm(BatchChannelNorm):
    r"""Batch-channel norm that takes estimates over many batches for the statistics of a batch of one or two samples.

    .. math:: \dot x = \frac{x - \hat\mu_c}{\sqrt{\hat\sigma^2_c + \epsilon}} \dot\gamma_c + \dot\beta_c, \qquad
              y = \frac{\dot x - \mu_{n,g}}{\sqrt{\sigma^2_{n,g} + \epsilon}} \gamma_c + \beta_c

    with estimates that each training step moves first, by the speed ``s`` towards the moments of its batch:

    .. math:: m = \mathrm{E}_c[x], \quad v = \mathrm{E}_c[(x - \hat\mu_c)^2], \qquad
              \hat\mu_c \leftarrow \hat\mu_c + s (m - \hat\mu_c), \quad
              \hat\sigma^2_c \leftarrow \hat\sigma^2_c + s (v - \hat\sigma^2_c)

    The mean square ``v`` is taken around the estimate as it was, and no gradient passes through either. The estimates
    are ``running_mean`` and ``running_var``; evaluation uses them as they are, so that training and evaluation are one
    formula. The parameters are those of :class:`BatchChannelNorm`.

    The source does not say how fast they move. Here the layer counts its steps ``t``; it averages them at first, and
    then the speed falls along a line to a tenth, as the learning rate does in a training of ``T`` steps:

    .. math:: s_t = \max\left(\tfrac1t,\; \text{momentum} \cdot \max(1 - \tfrac tT, \tfrac1{10})\right)

    Args:
        num_features: number of channels ``C`` of the input.
        num_groups: groups of the second step; divides ``num_features``. Default: 32.
        eps: added to both variances, inside the square root. Default: 1e-5.
        momentum: speed of the estimates at the start of the line; None averages over all steps alike. Default: 0.1.
        affine: learn both scales and shifts per channel, starting at 1 and 0. Default: True.
        device: of the parameters and buffers.
        dtype: of the parameters and buffers.

    Shape:
        ``(N, C, *)`` in and out. One sample is enough.

    Raises:
        ArgumentError: a number below 1, or an ``eps`` or ``momentum`` that cannot be.
        DivisibilityError: the channels do not divide into equal groups.
        ShapeError: the input has fewer than two axes or not ``num_features`` channels.
        DtypeError: the input is not floating point.
        SingleElementError: in training, a group has one element in a sample.

    Source: Qiao et al. 2019 (arXiv:1911.09738; arXiv:1903.10520v2).
    """

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
        super().__init__(num_features, num_groups, eps, momentum, affine, device=device, dtype=dtype)
        self.total_steps = 100_000

    def set_total_steps(self, steps: int) -> None:
        """Let the speed fall over a training of ``steps`` forward passes instead of 100,000."""
        check_count("steps", steps)
        self.total_steps = steps

    def newest(self) -> float | Tensor:
        """The speed ``s_t`` of the step that was counted last."""
        if self.momentum is None or not self.counts:
            return super().newest()
        t = self.num_batches_tracked.double()
        return torch.maximum(1 / t, self.momentum * (1 - t / self.total_steps).clamp(min=0.1))

    def normalize_batch(self, x: Tensor) -> Tensor:
        if not self.counts:
            return super().normalize_batch(x)
        check_group_elements(x.shape, self.num_groups)
        refuse_recomputation(self)
        with torch.no_grad():
            mean, variance = pool(*map_moments(x), _BATCH)
            # there is no estimate before the first step, which takes the moments of its batch as they are
            away = (mean[0] - upcast(self.running_mean)) * (self.num_batches_tracked > 0)
            around = variance[0] + away.square()
            self.update_running(mean[0], around)
        return self.normalize_running(x)
