"""Moving Average Batch Normalization (Yan, Wan, Zhang, Zhang, Wei & Sun 2020)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from groupnorm.errors import ArgumentError, SingleElementError
from groupnorm.nn.base import BatchTypeNorm, check_count, load_zeros, refuse_recomputation, upcast
from groupnorm.ops.checks import check_integer
from groupnorm.ops.moments import second_moment
from groupnorm.ops.reference import per_channel
from groupnorm.ops.saved import saved
from groupnorm.sets import batch_set

_BATCH = batch_set()


class MovingAverageBatchNorm(BatchTypeNorm):
    r"""Batch norm for tiny batches: no mean is subtracted, and what batches share is averaged over past ones.

    .. math:: y = r_c z \gamma_c + \beta_c, \quad z = \frac{x}{\sqrt{\bar\chi^2_c + \epsilon}}, \quad
              r_c = \mathrm{clip}\left(\sqrt{\frac{\bar\chi^2_c + \epsilon}{\chi^2_{run,c} + \epsilon}},
              \frac1{r_{max}}, r_{max}\right)

    with :math:`\bar\chi^2` the mean square of a channel, averaged over this batch and those before it that together
    make ``real_batch`` samples: a window of ``real_batch // N`` iterations, which is this one alone where the batch is
    that large. The gradient is not the derivative of this but that of batch norm, with its batch statistic averaged
    likewise:

    .. math:: \frac{\partial L}{\partial x} = \frac{g - z \bar\Psi_c}{\sqrt{\bar\chi^2_c + \epsilon}}, \quad
              g = \frac{\partial L}{\partial y} \gamma_c r_c, \quad \Psi_c = \mathrm{mean}_B(g z)

    Until ``warmup_steps``, and until the window is full, both averages are the values of the batch alone, and ``r`` is
    1 until ``renorm_steps``. The window is part of the state_dict, in ``past_chi2`` and ``past_psi``; a state_dict of
    batch norm loads too, and starts the schedule. A gradient that is not finite, as of a step that overflows in
    float16, does not enter the window.

    The source also centres the weights of the convolution before the norm, which is not done here: see the card.

    Args:
        num_features: number of channels ``C`` of the input.
        real_batch: samples of the batch to imitate. Default: 32 (the authors' code: 16 iterations of 2).
        eps: added to the mean square, inside the square root. Default: 1e-5.
        momentum: weight of the newest averaged mean square in the running one; None averages. Default: 0.02.
        affine: learn a scale and a shift per channel. Default: True.
        r_max: the most that ``r`` corrects, up or down. Default: 5.0.
        warmup_steps: training steps with the statistics of the batch alone. Default: 100.
        renorm_steps: training steps with ``r = 1``. Default: 1,000.
        device: of the parameters and buffers.
        dtype: of the parameters and buffers.

    Shape:
        ``(N, C, *)`` in and out.

    Raises:
        ArgumentError: a ``real_batch`` or ``r_max`` below 1, or negative steps.
        ShapeError: the input has fewer than two axes or not ``num_features`` channels.
        DtypeError: the input is not floating point.
        SingleElementError: in training, a channel has one element.
        RuntimeError: the gradient is differentiated again.

    Source: Yan et al. 2020 (arXiv:2001.06838), section 4, and its code.
    """

    past_chi2: Tensor
    past_psi: Tensor

    def __init__(
        self,
        num_features: int,
        real_batch: int = 32,
        eps: float = 1e-5,
        momentum: float | None = 0.02,
        affine: bool = True,
        *,
        r_max: float = 5.0,
        warmup_steps: int = 100,
        renorm_steps: int = 1_000,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_count("real_batch", real_batch)
        if not isinstance(r_max, (int, float)) or not r_max >= 1:
            raise ArgumentError(f"r_max={r_max!r}; expected a number of at least 1, which corrects nothing")
        for name, steps in (("warmup_steps", warmup_steps), ("renorm_steps", renorm_steps)):
            check_integer(name, steps)
            if steps < 0:
                raise ArgumentError(f"{name}={steps}; expected at least 0")
        super().__init__(num_features, eps, momentum, affine, device=device, dtype=dtype)
        self.real_batch, self.r_max = real_batch, r_max
        self.warmup_steps, self.renorm_steps = warmup_steps, renorm_steps
        self._most = max(warmup_steps, renorm_steps)
        for name in ("past_chi2", "past_psi"):
            self.register_buffer(name, torch.zeros(real_batch, num_features, device=device, dtype=dtype))

    def set_total_steps(self, steps: int) -> None:
        """Let each count of the schedule, and the memory of the running statistics, be at most a tenth of it."""
        self.shorten_memory(steps)
        self._most = steps // 10

    def reset_running_stats(self) -> None:
        """Set the running statistics back, and empty the window."""
        super().reset_running_stats()
        for name in ("past_chi2", "past_psi"):
            past = self._buffers.get(name)  # the base class resets before it is there
            if past is not None:
                past.zero_()

    def normalize_batch(self, x: Tensor) -> Tensor:
        if _BATCH.size(x.shape) == 1:
            raise SingleElementError(
                f"input {tuple(x.shape)} has 1 element per channel, of which the first steps keep the sign alone; "
                f"expected at least 2: use a larger batch or larger feature maps"
            )
        if not self.counts:
            return self.normalize_mean_square(x)
        refuse_recomputation(self)
        window = max(self.real_batch // len(x), 1)
        scale, r, averaged = self._statistics(second_moment(x.detach()).mean(0), window)
        y: Tensor = _Normalize.apply(x, scale, r, averaged, self.past_psi, window)
        return y

    @torch.no_grad()
    def _statistics(self, chi2: Tensor, window: int) -> tuple[Tensor, Tensor, Tensor]:
        """What ``x`` is scaled by, ``r``, and whether the window is used; the batch then enters window and average."""
        step = self.num_batches_tracked + 1
        warmup, renorm = (min(n, self._most) for n in (self.warmup_steps, self.renorm_steps))
        averaged = saved((step > window) & (step >= warmup))
        past = _moved_on(self.past_chi2, chi2)
        chi2 = torch.where(averaged, past[-window:].mean(0), chi2)
        scale = saved((chi2 + self.eps).rsqrt())
        ratio = (upcast(self.running_var) + self.eps).rsqrt() / scale
        r = saved(torch.where(step > max(warmup, renorm), ratio.clamp(1 / self.r_max, self.r_max), 1.0))
        self.past_chi2.copy_(past)
        self.update_running(torch.zeros_like(chi2), chi2)
        return scale, r, averaged

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        # of batch norm: an empty window, and the schedule from its start
        load_zeros(self, state_dict, prefix, ("past_chi2", "past_psi", "num_batches_tracked"))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        return (
            f"{super().extra_repr()}, real_batch={self.real_batch}, r_max={self.r_max}, "
            f"warmup_steps={self.warmup_steps}, renorm_steps={self.renorm_steps}"
        )


class _Normalize(torch.autograd.Function):
    """``x`` scaled by ``scale`` and ``r``, with the published gradient, which moves ``past_psi`` on."""

    @staticmethod
    def forward(x: Tensor, scale: Tensor, r: Tensor, averaged: Tensor, past_psi: Tensor, window: int) -> Tensor:
        return x * per_channel(scale * r, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *numbers, ctx.past_psi, ctx.window = (
            inputs  # not saved: the backward passes of other forward passes may write it before
        )
        ctx.save_for_backward(*numbers)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        x, scale, r, averaged = ctx.saved_tensors
        z = x * per_channel(scale, x)
        g = upstream * per_channel(r, x)
        psi = (g * z).mean((0, *range(2, x.dim())))
        past = _moved_on(ctx.past_psi, psi)
        ctx.past_psi.copy_(past)
        psi = torch.where(averaged, past[-ctx.window :].mean(0), psi)
        return (g - z * per_channel(psi, x)) * per_channel(scale, x), None, None, None, None, None


def _moved_on(past: Tensor, newest: Tensor) -> Tensor:
    """The past ``[iterations, C]`` without its oldest iteration and with the newest, where that is finite in it."""
    kept = newest.to(past.dtype).isfinite()
    return torch.where(kept, torch.cat((upcast(past[1:]), newest[None])), upcast(past))
