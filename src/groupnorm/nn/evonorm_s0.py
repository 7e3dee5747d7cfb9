"""EvoNorm-S0: group norm's scale and a gated activation in one layer (Liu, Brock, Simonyan & Le 2020)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from groupnorm.errors import SingleElementError
from groupnorm.nn.base import SampleNorm, check_flag
from groupnorm.ops.checks import check_groups
from groupnorm.ops.moments import map_moments, per_map, pool
from groupnorm.ops.reference import per_channel
from groupnorm.sets import group_set


class EvoNormS0(SampleNorm):
    r"""A norm of the sample alone that is its own activation, found by search.

    .. math:: y = \frac{x \, \sigma(v_c x)}{\sqrt{\mathrm{Var}_g[x] + \epsilon}} \gamma_c + \beta_c

    with the biased variance over the channels and positions of a group of one sample, and :math:`\sigma` the logistic
    function. No mean is subtracted. Training and evaluation compute the same.

    Args:
        num_channels: number of channels ``C`` of the input.
        num_groups: number of groups; divides ``num_channels``. Default: 32.
        eps: added to the variance, inside the square root. Default: 1e-5.
        affine: learn a scale and a shift per channel, starting at 1 and 0. Default: True.
        activation: False leaves the affine map alone, without variance and gate, as the authors' code does where no
            activation follows the norm. Default: True.
        device: of the parameters.
        dtype: of the parameters.

    Shape:
        ``(N, C, *)`` in and out.

    Raises:
        ArgumentError: a number below 1, a negative ``eps``, or an ``activation`` that is not a bool.
        DivisibilityError: the channels do not divide into equal groups.
        ShapeError: the input has fewer than two axes or not ``num_channels`` channels.
        DtypeError: the input is not floating point.
        SingleElementError: in training, a group has one element.

    Source: Liu et al. 2020 (arXiv:2004.02967), table 2.
    """

    v: Tensor | None

    def __init__(
        self,
        num_channels: int,
        num_groups: int = 32,
        eps: float = 1e-5,
        affine: bool = True,
        activation: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_flag("activation", activation)
        super().__init__(num_channels, eps, affine, device=device, dtype=dtype)
        check_groups(num_groups, num_channels)
        self.num_groups, self.activation = num_groups, activation
        self._group = group_set(num_groups)
        v = torch.empty(num_channels, device=device, dtype=dtype)
        self.register_parameter("v", nn.Parameter(v) if activation else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the scale and the slope of the gate to 1, the shift to 0."""
        super().reset_parameters()
        v = self._parameters.get("v")  # the base class resets before it is there
        if v is not None:
            nn.init.ones_(v)

    def normalize(self, x: Tensor) -> Tensor:
        if self.v is None:
            return x
        if self.training and self._group.size(x.shape) == 1:
            raise SingleElementError(
                f"input {tuple(x.shape)} with num_groups={self.num_groups} has 1 element per group, whose variance is "
                f"0, so nothing is normalised; expected at least 2: use fewer groups or larger feature maps"
            )
        _, variance = pool(*map_moments(x), self._group)
        return x * torch.sigmoid(per_channel(self.v, x) * x) * per_map((variance + self.eps).rsqrt(), x)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, num_groups={self.num_groups}, activation={self.activation}"
