"""Continual Normalization (Pham, Liu & Hoi 2022): group norm, then batch norm."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from groupnorm.nn.base import BatchTypeNorm, check_count, load_initial_statistics
from groupnorm.ops.checks import check_group_elements, check_groups
from groupnorm.ops.moments import map_moments, per_map, pool
from groupnorm.sets import group_set


class ContinualNorm(BatchTypeNorm):
    r"""Batch norm of group norm, for streams of tasks: each sample is normalised on its own before it is pooled.

    .. math:: \dot x = \frac{x - \mu_{n,g}}{\sqrt{\sigma^2_{n,g} + \epsilon}}, \qquad
              y = \frac{\dot x - \mu_c}{\sqrt{\sigma^2_c + \epsilon}} \gamma_c + \beta_c

    with mean and biased variance of the group ``g`` of channels of one sample, and then of the channel ``c`` over the
    batch. Only the second step has a scale and a shift. Running statistics are kept of the batch norm, so of
    :math:`\dot x`; evaluation uses them there, and the sample's own in the group norm. Batch-channel norm takes the two
    steps in the opposite order.

    The state_dict has the keys of batch norm's. One of another norm starts the running statistics anew, since they are
    of something else. It is known by its metadata, which a file of safetensors does not keep: load such a file into the
    network that it is of, and convert that.

    Args:
        num_features: number of channels ``C`` of the input.
        num_groups: groups of the first step; divides ``num_features``. Default: 32.
        eps: added to both variances, inside the square root. Default: 1e-5.
        momentum: weight of a batch in the running statistics; None averages. Default: 0.1.
        affine: learn a scale and a shift per channel. Default: True.
        device: of the parameters and buffers.
        dtype: of the parameters and buffers.

    Shape:
        ``(N, C, *)`` in and out.

    Raises:
        ArgumentError: a number below 1, or an ``eps`` or ``momentum`` that cannot be.
        DivisibilityError: the channels do not divide into equal groups.
        ShapeError: the input has fewer than two axes or not ``num_features`` channels.
        DtypeError: the input is not floating point.
        SingleElementError: in training, a group has one element in a sample, or a channel has one in the batch.

    Source: Pham, Liu & Hoi 2022 (arXiv:2203.16102).
    """

    _version = 3  # that of norms with running statistics of the input is 2

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

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, metadata: Any, *rest: Any) -> None:
        if metadata.get("version") == _BatchNorm._version:
            load_initial_statistics(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, metadata, *rest)

    def normalize_batch(self, x: Tensor) -> Tensor:
        check_group_elements(x.shape, self.num_groups)
        return super().normalize_batch(self._normalize_groups(x))

    def normalize_running(self, x: Tensor) -> Tensor:
        return super().normalize_running(self._normalize_groups(x))

    def _normalize_groups(self, x: Tensor) -> Tensor:
        """The first step."""
        mean, variance = pool(*map_moments(x), self._groups)
        return (x - per_map(mean, x)) * per_map((variance + self.eps).rsqrt(), x)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, num_groups={self.num_groups}"
