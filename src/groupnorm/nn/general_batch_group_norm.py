"""Batch/Group Normalization with inference example weighing (Summers & Dinneen 2020)."""

from __future__ import annotations

import torch
from torch import Tensor

from groupnorm.errors import ArgumentError
from groupnorm.nn.base import BatchTypeNorm, check_count, check_several, upcast
from groupnorm.ops.checks import check_groups
from groupnorm.ops.moments import map_moments, per_map, pool
from groupnorm.sets import ALL, EACH, Blocks, SharedSet, batch_set, general_set

_BATCH = batch_set()


class GeneralBatchGroupNorm(BatchTypeNorm):
    r"""Normalises blocks of a few samples over groups of channels: between batch norm and group norm.

    .. math:: y = \frac{x - \mu_{b,g}}{\sqrt{\sigma^2_{b,g} + \epsilon}} \gamma_c + \beta_c

    with mean and biased variance of the block ``b`` of ``examples`` neighbouring samples and the group ``g`` of
    channels. The last block holds what is left. One sample is group norm, all samples with a group per channel is
    batch norm, and blocks with a group per channel are ghost batch norm.

    The running statistics are moving averages, per channel, of E[x] and E[x^2] over the batch: ``running_mean`` is the
    first, and ``running_var`` the second minus the square of the first, so that nothing cancels. In evaluation they are
    pooled over the channels of a group and mixed with the sample's own moments, which weigh ``example_weight``:

    .. math:: \mathrm{E}[x^p] = (1 - a) \, \mathrm{E}_\text{running}[x^p] + a \, \mathrm{E}_{n,g}[x^p], \quad p = 1, 2,
              \qquad \sigma^2 = \mathrm{E}[x^2] - \mathrm{E}[x]^2

    Args:
        num_features: number of channels ``C`` of the input.
        num_groups: groups of channels; divides ``num_features``. Default: 32.
        examples: samples of a block. Default: 2.
        example_weight: ``a`` above, from 0 to 1. It changes nothing in training: set the attribute of a trained layer
            to what validates best. Default: 0.
        eps: added to the variance, inside the square root. Default: 1e-5.
        momentum: weight of a batch in the running statistics; None averages. Default: 0.01.
        affine: learn a scale and a shift per channel. Default: True.
        device: of the parameters and buffers.
        dtype: of the parameters and buffers.

    Shape:
        ``(N, C, *)`` in and out.

    Raises:
        ArgumentError: a number below 1, or a weight, ``eps`` or ``momentum`` that cannot be.
        DivisibilityError: the channels do not divide into equal groups.
        ShapeError: the input has fewer than two axes or not ``num_features`` channels.
        DtypeError: the input is not floating point.
        SingleElementError: in training, a block has one element per group.

    Source: Summers & Dinneen 2020 (arXiv:1906.03548).
    """

    def __init__(
        self,
        num_features: int,
        num_groups: int = 32,
        examples: int = 2,
        example_weight: float = 0.0,
        eps: float = 1e-5,
        momentum: float | None = 0.01,
        affine: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_count("num_features", num_features)
        check_groups(num_groups, num_features)
        check_count("examples", examples)
        if not (isinstance(example_weight, (int, float)) and 0 <= example_weight <= 1):
            raise ArgumentError(f"example_weight={example_weight!r}; expected a number from 0 to 1: the default is 0")
        super().__init__(num_features, eps, momentum, affine, device=device, dtype=dtype)
        self.num_groups, self.examples, self.example_weight = num_groups, examples, example_weight
        self._blocks = general_set(examples, num_groups)
        self._rest = SharedSet(ALL, Blocks(count=num_groups))
        self._example = SharedSet(EACH, Blocks(count=num_groups))

    def set_total_steps(self, steps: int) -> None:
        """Let the memory of the moving moments be at most a tenth of the training."""
        self.shorten_memory(steps)

    def normalize_batch(self, x: Tensor) -> Tensor:
        rest = len(x) % self.examples
        check_several(self._example.size(x.shape) * (rest or self.examples), x.shape)
        mean, variance = map_moments(x)
        of_batch = pool(mean, variance, _BATCH)
        self.update_running(of_batch[0][0], of_batch[1][0])
        whole = pool(mean[: len(x) - rest], variance[: len(x) - rest], self._blocks)
        if rest:
            last = pool(mean[-rest:], variance[-rest:], self._rest)
            whole = torch.cat([whole[0], last[0]]), torch.cat([whole[1], last[1]])
        return self._normalize(x, *whole)

    def moved(self, mean: Tensor, variance: Tensor, newest: float | Tensor) -> tuple[Tensor, Tensor]:
        """Averages of E[x] and E[x^2], kept as their mean and variance: what lies between two means joins it."""
        between = (mean - self.running_mean).square() * (1 - newest)
        return super().moved(mean, variance + between, newest)

    def normalize_running(self, x: Tensor) -> Tensor:
        mean, variance = pool(upcast(self.running_mean)[None], upcast(self.running_var)[None], self._rest)
        a = self.example_weight
        if a != 0:
            own_mean, own_variance = pool(*map_moments(x), self._example)
            away = own_mean - mean
            # E[x^2] - E[x]^2 of the mixture, without the cancellation
            mean, variance = mean + a * away, (1 - a) * variance + a * own_variance + a * (1 - a) * away.square()
        return self._normalize(x, mean, variance)

    def _normalize(self, x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        return (x - per_map(mean, x)) * per_map((variance + self.eps).rsqrt(), x)

    def extra_repr(self) -> str:
        own = f"num_groups={self.num_groups}, examples={self.examples}, example_weight={self.example_weight}"
        return f"{super().extra_repr()}, {own}"
