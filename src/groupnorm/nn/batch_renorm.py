"""Batch Renormalization (Ioffe 2017)."""

from __future__ import annotations

import torch
from torch import Tensor

from groupnorm.errors import ArgumentError
from groupnorm.nn.base import BatchTypeNorm, check_several, refuse_recomputation, upcast
from groupnorm.ops.checks import check_integer
from groupnorm.ops.moments import map_moments, pool
from groupnorm.ops.reference import per_channel
from groupnorm.ops.saved import saved
from groupnorm.sets import batch_set

_BATCH = batch_set()
_PUBLISHED_STEPS = 100_000
"""A training of this many steps or more follows the published schedule."""


class BatchRenorm(BatchTypeNorm):
    r"""Batch norm, corrected towards its running statistics, so that training and evaluation see the same numbers.

    .. math:: y = \left(\frac{x - \mu_B}{\sigma_B} r + d\right) \gamma_c + \beta_c, \quad
              r = \mathrm{clip}\left(\frac{\sigma_B}{\sigma}, \frac1{r_{max}}, r_{max}\right), \quad
              d = \mathrm{clip}\left(\frac{\mu_B - \mu}{\sigma}, -d_{max}, d_{max}\right)

    with :math:`\sigma_B = \sqrt{\mathrm{Var}_B[x] + \epsilon}` of the batch (biased) and the running :math:`\mu` and
    :math:`\sigma` of before this batch. Gradients treat ``r`` and ``d`` as constants, so that they are those of batch
    norm times ``r``. It starts as batch norm, ``r_max = 1`` and ``d_max = 0``; after ``warmup_steps`` both grow
    linearly, ``r_max`` until ``r_steps`` and ``d_max`` until ``d_steps``.

    As in the source, what is averaged over time is the standard deviation: ``running_var`` holds :math:`\sigma^2 -
    \epsilon`, of which :math:`\sigma` is moved by ``momentum`` of the way to :math:`\sigma_B`. Evaluation is
    :math:`(x - \mu) / \sigma`, and a batch norm with the same ``eps`` and state_dict evaluates alike.

    Args:
        num_features: number of channels ``C`` of the input.
        eps: added to the variance, inside the square root. Default: 1e-3.
        momentum: weight of the newest batch in the running statistics; None averages. Default: 0.01.
        affine: learn a scale and a shift per channel. Default: True.
        r_max: the most that the scale is corrected, in the end. Default: 3.0.
        d_max: the most that the mean is corrected, in the end, in standard deviations. Default: 5.0.
        warmup_steps: training steps as batch norm. Default: 5,000.
        r_steps: training steps after which ``r_max`` is reached. Default: 40,000.
        d_steps: training steps after which ``d_max`` is reached. Default: 25,000.
        device: of the parameters and buffers.
        dtype: of the parameters and buffers.

    Shape:
        ``(N, C, *)`` in and out.

    Raises:
        ArgumentError: an ``r_max`` below 1, a ``d_max`` below 0, or steps that are negative or out of order.
        ShapeError: the input has fewer than two axes or not ``num_features`` channels.
        DtypeError: the input is not floating point.
        SingleElementError: in training, a channel has one element.

    Source: Ioffe 2017 (arXiv:1702.03275), algorithm 1 and section 4.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-3,
        momentum: float | None = 0.01,
        affine: bool = True,
        *,
        r_max: float = 3.0,
        d_max: float = 5.0,
        warmup_steps: int = 5_000,
        r_steps: int = 40_000,
        d_steps: int = 25_000,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        for name, limit, least in (("r_max", r_max, 1), ("d_max", d_max, 0)):
            if not isinstance(limit, (int, float)) or not limit >= least:
                raise ArgumentError(f"{name}={limit!r}; expected a number of at least {least}, which is batch norm")
        for name, steps, earliest in (
            ("warmup_steps", warmup_steps, 0),
            ("r_steps", r_steps, warmup_steps),
            ("d_steps", d_steps, warmup_steps),
        ):
            check_integer(name, steps)
            if steps < earliest:
                raise ArgumentError(f"{name}={steps}; expected at least {earliest}, where the limits begin to grow")
        super().__init__(num_features, eps, momentum, affine, device=device, dtype=dtype)
        self.r_max, self.d_max = r_max, d_max
        self.warmup_steps, self.r_steps, self.d_steps = warmup_steps, r_steps, d_steps
        self._shrink = 1.0

    def set_total_steps(self, steps: int) -> None:
        """Shrink the schedule to a training of fewer than 100,000 steps, and the memory to a tenth of it."""
        self.shorten_memory(steps)
        self._shrink = min(1.0, steps / _PUBLISHED_STEPS)

    def limits(self) -> tuple[Tensor, Tensor]:
        """The largest ``r`` and ``d`` of the next training step."""
        return self._limit(1.0, self.r_max, self.r_steps), self._limit(0.0, self.d_max, self.d_steps)

    def _limit(self, first: float, last: float, steps: int) -> Tensor:
        """A limit that grows from ``first`` after the warm-up to ``last`` after ``steps``."""
        done = self.num_batches_tracked.to(upcast(self.running_var).dtype)
        start, end = self.warmup_steps * self._shrink, steps * self._shrink
        growing = first + (last - first) * (done - start) / (end - start)  # 0 / 0 where it grows at once
        return torch.where(done >= end, last, torch.where(done > start, growing, first))

    def normalize_batch(self, x: Tensor) -> Tensor:
        if not self.counts:
            return super().normalize_batch(x)
        check_several(_BATCH.size(x.shape), x.shape)
        refuse_recomputation(self)
        mean, variance = (pooled[0] for pooled in pool(*map_moments(x), _BATCH))
        r, d = self._correct(mean, variance)
        sigma = (variance + self.eps).sqrt()
        return (x - per_channel(mean, x)) * per_channel(r / sigma, x) + per_channel(d, x)

    @torch.no_grad()
    def _correct(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """``r`` and ``d`` of a batch, whose statistics then move the running ones."""
        sigma, running = self._deviations(variance)
        r_max, d_max = self.limits()
        r = saved(torch.clamp(sigma / running, 1 / r_max, r_max))
        d = saved(torch.clamp((mean - upcast(self.running_mean)) / running, -d_max, d_max))
        self.update_running(mean, variance)
        return r, d

    def moved(self, mean: Tensor, variance: Tensor, newest: float | Tensor) -> tuple[Tensor, Tensor]:
        """The averages of mean and standard deviation, the latter as the variance."""
        sigma, running = self._deviations(variance)
        step = (sigma - running) * newest
        change = step * (2 * running + step)  # (running + step)^2 - running^2
        return super().moved(mean, variance, newest)[0], self.running_var + change

    def _deviations(self, variance: Tensor) -> tuple[Tensor, Tensor]:
        """The standard deviation of a batch, and the running one."""
        return (variance + self.eps).sqrt(), (upcast(self.running_var) + self.eps).sqrt()

    def extra_repr(self) -> str:
        return (
            f"{super().extra_repr()}, r_max={self.r_max}, d_max={self.d_max}, warmup_steps={self.warmup_steps}, "
            f"r_steps={self.r_steps}, d_steps={self.d_steps}"
        )
