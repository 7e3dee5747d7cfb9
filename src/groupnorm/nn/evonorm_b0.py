"""EvoNorm-B0: the variances of batch and instance norm and an activation in one layer (Liu et al. 2020)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from groupnorm.errors import SingleElementError
from groupnorm.nn.base import BatchTypeNorm, check_flag, upcast
from groupnorm.ops.moments import map_moments, per_map, pool
from groupnorm.ops.reference import per_channel
from groupnorm.sets import batch_set

_BATCH = batch_set()


class EvoNormB0(BatchTypeNorm):
    r"""A norm with batch statistics that is its own activation, found by search.

    .. math:: y = \frac{x}{\max\left(\sqrt{\mathrm{Var}_B[x] + \epsilon},\;
              v_c x + \sqrt{\mathrm{Var}_I[x] + \epsilon}\right)} \gamma_c + \beta_c

    with the biased variance of the channel over the batch, and that of one map of one sample. No mean is subtracted.
    In evaluation the running variance takes the place of the batch's; the sample's own stays. The running variance is
    updated with the unbiased one, as batch norm's. The running mean, which batch norm's tools expect, is kept too; the
    layer does not read it.

    Args:
        num_features: number of channels ``C`` of the input.
        eps: added to both variances, inside the square roots. Default: 1e-5.
        momentum: weight of a batch in the running statistics; None averages. Default: 0.1.
        affine: learn a scale and a shift per channel. Default: True.
        activation: False leaves the affine map alone, without any variance, as the authors' code does where no
            activation follows the norm. Default: True.
        device: of the parameters and buffers.
        dtype: of the parameters and buffers.

    Shape:
        ``(N, C, *)`` in and out.

    Raises:
        ArgumentError: an ``eps`` or ``momentum`` that cannot be, or an ``activation`` that is not a bool.
        ShapeError: the input has fewer than two axes or not ``num_features`` channels.
        DtypeError: the input is not floating point.
        SingleElementError: in training, a channel has one element in the batch.

    Source: Liu et al. 2020 (arXiv:2004.02967), table 2.
    """

    v: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        *,
        activation: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_flag("activation", activation)
        super().__init__(num_features, eps, momentum, affine, device=device, dtype=dtype)
        self.activation = activation
        v = torch.empty(num_features, device=device, dtype=dtype)
        self.register_parameter("v", nn.Parameter(v) if activation else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the scale and the slope of the activation to 1, the shift to 0, and the running statistics back."""
        super().reset_parameters()
        v = self._parameters.get("v")  # the base class resets before it is there
        if v is not None:
            nn.init.ones_(v)

    def normalize_batch(self, x: Tensor) -> Tensor:
        if self.v is None:
            return x
        elements = _BATCH.size(x.shape)
        if elements == 1:
            raise SingleElementError(
                f"input {tuple(x.shape)} has 1 element per channel, whose variance is 0, so nothing is normalised; "
                f"expected at least 2: use a larger batch or larger feature maps"
            )
        mean, instance = map_moments(x)
        batch_mean, batch = pool(mean, instance, _BATCH)
        self.update_running(batch_mean[0], batch[0] * elements / (elements - 1))
        return self._divide(x, self.v, batch, instance)

    def normalize_running(self, x: Tensor) -> Tensor:
        return x if self.v is None else self._divide(x, self.v, upcast(self.running_var)[None], map_moments(x)[1])

    def _divide(self, x: Tensor, v: Tensor, batch: Tensor, instance: Tensor) -> Tensor:
        """``x`` over the larger of the two, from variances ``[N, C]`` or ``[1, C]``."""
        right = per_channel(v, x) * x + per_map((instance + self.eps).sqrt(), x)
        return x / torch.maximum(per_map((batch + self.eps).sqrt(), x), right)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, activation={self.activation}"
