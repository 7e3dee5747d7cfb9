"""Group Normalization (Wu & He 2018) as a module."""

from __future__ import annotations

from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from groupnorm import functional
from groupnorm.errors import ArgumentError, DivisibilityError
from groupnorm.nn.base import check_channels
from groupnorm.nn.norm import default_groups
from groupnorm.ops.backends import AUTO, check_name
from groupnorm.ops.checks import (
    as_integer,
    check_activation,
    check_eps,
    check_group_elements,
    check_groups,
    check_integer,
)


class GroupNorm(nn.GroupNorm):
    r"""Normalises each sample over groups of channels; a drop-in for :class:`torch.nn.GroupNorm`.

    .. math:: y = \frac{x - \mathrm{E}[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}} \gamma + \beta

    with mean and biased variance over the ``C / G`` channels and all positions of a group of one sample.
    Training and evaluation compute the same. ``GroupNorm(1, C)`` is layer norm over (C, H, W) with one
    scale and shift per channel; ``GroupNorm(C, C)`` is instance norm.

    Args:
        num_groups: number of groups ``G``; divides ``num_channels``.
        num_channels: number of channels ``C`` of the input.
        eps: added to the variance, inside the square root. Default: 1e-5.
        affine: learn a scale and a shift per channel, starting at 1 and 0. Default: True.
        device: of the parameters.
        dtype: of the parameters.
        bias: with ``affine``, learn the shift too. Default: True.
        group_size: channels per group, instead of ``num_groups``: exactly one of the two is given.
        activation: None, "relu", "silu", "gelu" (exact) or "gelu_tanh", applied to the normalised output.
            Default: None.
        backend: "auto", or the name of one that every call takes; see :func:`groupnorm.explain`. Default: "auto".

    Shape:
        ``(N, C, *)`` in and out.

    Raises:
        ArgumentError: both or none of ``num_groups`` and ``group_size``, a value below 1, a negative ``eps``.
        DivisibilityError: the channels do not divide into equal groups.
        ShapeError: the input has fewer than two axes or not ``num_channels`` channels.
        DtypeError: the input is not floating point.
        SingleElementError: in training, a group has one element; its output would not depend on the input.

    Example::

        >>> norm = GroupNorm(32, 256, activation="relu")
        >>> norm(torch.randn(2, 256, 14, 14)).shape
        torch.Size([2, 256, 14, 14])

    Source: Wu & He 2018 (arXiv:1803.08494), section 3.1.
    """

    activation: str | None
    backend: str = AUTO  # of modules that were pickled before there was a choice

    def __init__(
        self,
        num_groups: int | None = None,
        num_channels: int | None = None,
        eps: float = 1e-5,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        group_size: int | None = None,
        activation: str | None = None,
        backend: str = AUTO,
    ) -> None:
        if num_channels is not None:
            check_integer("num_channels", num_channels)
        if num_channels is None or num_channels < 1:
            raise ArgumentError(
                f"num_channels={num_channels}; expected the number of channels of the input, at least 1, "
                f"as in GroupNorm(32, 256) or GroupNorm(num_channels=256, group_size=16)"
            )
        num_groups = _resolve_groups(num_groups, group_size, num_channels)
        check_eps(eps)
        check_activation(activation)
        check_name(backend)
        super().__init__(as_integer(num_groups), as_integer(num_channels), float(eps), affine, device, dtype)
        if not bias:  # torch 2.11 has no bias= to pass on
            self.register_parameter("bias", None)
        self.activation = activation
        self.backend = backend

    def reset_parameters(self) -> None:
        """Set the scale to 1 and the shift to 0."""
        if self.affine:
            nn.init.ones_(self.weight)
            if self.bias is not None:
                nn.init.zeros_(self.bias)

    def forward(
        self,
        input: Tensor,
        residual: Tensor | None = None,
        statistics: tuple[Tensor, Tensor] | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """The normalised input; the options are those of :func:`groupnorm.functional.group_norm`."""
        if residual is None and statistics is None and mask is None:
            return self.activated(input, self.activation)
        return self._normalized(input, self.activation, residual=residual, statistics=statistics, mask=mask)

    def activated(self, input: Tensor, activation: str | None) -> Tensor:
        """The normalised input under an activation of this call."""
        return self._normalized(input, activation)

    def _normalized(self, input: Tensor, activation: str | None, **fused: Any) -> Tensor:
        _check(input, self.num_channels, self.num_groups, self.training and fused.get("statistics") is None)
        return functional.group_norm(
            input,
            self.num_groups,
            self.weight,
            self.bias,
            self.eps,
            activation=activation,
            backend=self.backend,
            **fused,
        )

    def extra_repr(self) -> str:
        activation = "" if self.activation is None else f", activation={self.activation}"
        backend = "" if self.backend == AUTO else f", backend={self.backend}"
        return super().extra_repr() + activation + backend


@torch.fx.wrap  # a leaf to symbolic tracing: it looks at shapes
def _check(input: Tensor, num_channels: int, num_groups: int, training: bool) -> None:
    """Raise when the input is not what the module was made for."""
    check_channels(input, num_channels)
    if training:
        check_group_elements(input.shape, num_groups)


def _resolve_groups(num_groups: int | None, group_size: int | None, num_channels: int) -> int:
    """The number of groups from exactly one of ``num_groups`` and ``group_size``."""
    if (num_groups is None) == (group_size is None):
        groups = default_groups(num_channels)
        size = num_channels // groups
        raise ArgumentError(
            f"num_groups={num_groups}, group_size={group_size}; expected exactly one of the two, "
            f"as in GroupNorm({groups}, {num_channels}) or GroupNorm(num_channels={num_channels}, group_size={size})"
        )
    if num_groups is not None:
        check_groups(num_groups, num_channels)
        return num_groups
    assert group_size is not None
    check_integer("group_size", group_size)
    if group_size < 1:
        raise ArgumentError(f"group_size={group_size}; expected at least 1 channel per group")
    if num_channels % group_size:
        raise DivisibilityError(num_channels, group_size, what="group_size")
    return num_channels // group_size
