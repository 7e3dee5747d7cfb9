"""Power Normalization (Shen, Yao, Gholami, Mahoney & Keutzer 2020)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from groupnorm.errors import ArgumentError, SingleElementError
from groupnorm.nn.base import (
    BatchTypeNorm,
    check_count,
    check_fraction,
    load_initial_statistics,
    load_zeros,
    move,
    refuse_recomputation,
    upcast,
)
from groupnorm.ops.checks import check_groups, check_integer
from groupnorm.ops.moments import second_moment
from groupnorm.ops.reference import per_channel
from groupnorm.ops.saved import saved
from groupnorm.sets import batch_set

_BATCH = batch_set()


class PowerNorm(BatchTypeNorm):
    r"""Divides by the running root mean square of each channel, in training too; no mean is subtracted.

    Each position is first divided by its root mean square over the channels of its group (group scaling):

    .. math:: u = \frac{x}{\sqrt{\mathrm{mean}_{group}(x^2) + \epsilon}}, \quad
              y = z \gamma_c + \beta_c, \quad z = \frac{u}{\sqrt{\psi^2_c + \epsilon}}

    with :math:`\psi^2` the running mean of :math:`\psi^2_B = \mathrm{mean}_B(u^2)` of before this batch. The gradient
    is not the derivative of ``z``, but that of batch norm with a running average in place of a batch statistic:

    .. math:: \frac{\partial L}{\partial u} = \frac{g'}{\sqrt{\psi^2_{B,c} + \epsilon}}, \quad
              g' = \frac{\partial L}{\partial y} \gamma_c - \nu_c z, \quad
              \nu_c \leftarrow \nu_c + m\,\mathrm{mean}_B(g' z)

    Until ``warmup_steps`` it is :math:`\psi^2_B` that divides in the forward pass, as in batch norm. ``nu`` is part of
    the state_dict. One of another norm loads too, and starts the warm-up and the running statistics anew, for they are
    those of ``u``. A gradient that is not finite, as of a step
    that overflows in float16, does not enter ``nu``.

    Args:
        num_features: number of channels ``C`` of the input.
        num_groups: groups of channels that scale a position. Default: 1.
        eps: added to each mean square, inside the square root. Default: 1e-5.
        momentum: weight of the newest batch in the running mean square; None averages. Default: 0.1.
        affine: learn a scale and a shift per channel. Default: True.
        backward_momentum: weight ``m`` of the newest batch in ``nu``. Default: 0.1.
        warmup_steps: training steps with the statistics of the batch. Default: 10,000.
        device: of the parameters and buffers.
        dtype: of the parameters and buffers.

    Shape:
        ``(N, C, *)`` in and out; tokens ``(N, T, C)`` go in as ``(N, C, T)``.

    Raises:
        DivisibilityError: ``num_groups`` does not divide ``num_features``.
        ArgumentError: negative steps, or a momentum that cannot be.
        ShapeError: the input has fewer than two axes or not ``num_features`` channels.
        DtypeError: the input is not floating point.
        SingleElementError: in training, a channel has one element.
        RuntimeError: the gradient is differentiated again.

    Source: Shen et al. 2020 (arXiv:2003.07845), algorithm 2, and its code.
    """

    nu: Tensor

    def __init__(
        self,
        num_features: int,
        num_groups: int = 1,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        *,
        backward_momentum: float = 0.1,
        warmup_steps: int = 10_000,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, device=device, dtype=dtype)
        check_groups(num_groups, num_features)
        if backward_momentum is None:
            raise ArgumentError("backward_momentum=None; expected a number from 0 to 1")
        check_fraction("backward_momentum", backward_momentum)
        check_integer("warmup_steps", warmup_steps)
        if warmup_steps < 0:
            raise ArgumentError(f"warmup_steps={warmup_steps}; expected at least 0")
        self.num_groups, self.backward_momentum, self.warmup_steps = num_groups, backward_momentum, warmup_steps
        self._warmup = warmup_steps
        self.register_buffer("nu", torch.zeros(num_features, device=device, dtype=dtype))

    def set_total_steps(self, steps: int) -> None:
        """Let the warm-up be at most a tenth of the training."""
        check_count("steps", steps)
        self._warmup = min(self.warmup_steps, steps // 10)

    def reset_running_stats(self) -> None:
        """Set the running statistics back, that of the gradient too."""
        super().reset_running_stats()
        nu = self._buffers.get("nu")  # the base class resets before it is there
        if nu is not None:
            nu.zero_()

    def normalize_batch(self, x: Tensor) -> Tensor:
        if _BATCH.size(x.shape) == 1:
            raise SingleElementError(
                f"input {tuple(x.shape)} has 1 element per channel, of which the first steps keep the sign alone; "
                f"expected at least 2: use a larger batch or larger feature maps"
            )
        x = self._scale_groups(x)
        if not self.counts:
            return self.normalize_mean_square(x)
        refuse_recomputation(self)
        scale, batch_scale = self._statistics(second_moment(x.detach()).mean(0))
        y: Tensor = _Normalize.apply(x, scale, batch_scale, self.nu, self.backward_momentum)
        return y

    def normalize_running(self, x: Tensor) -> Tensor:
        return super().normalize_running(self._scale_groups(x))

    def newest(self) -> float | Tensor:
        """As of batch norm; in the warm-up more, so that the average starts with the first batch and not with 1.

        The authors' code averages twice in a warm-up step: cumulatively, then exponentially. This is both in one.
        """
        if self.momentum is None or not self.counts:
            return super().newest()
        step = self.num_batches_tracked.to(upcast(self.running_var).dtype)
        return torch.where(step < self._warmup, self.momentum + (1 - self.momentum) / step, self.momentum)

    def _scale_groups(self, x: Tensor) -> Tensor:
        grouped: Tensor = x.unflatten(1, (self.num_groups, self.num_features // self.num_groups))
        return (grouped * (grouped.square().mean(2, keepdim=True) + self.eps).rsqrt()).flatten(1, 2)

    @torch.no_grad()
    def _statistics(self, mean_square: Tensor) -> tuple[Tensor, Tensor]:
        """What the forward and the backward pass scale by; the batch then enters the running average."""
        batch_scale = (mean_square + self.eps).rsqrt()
        running_scale = (upcast(self.running_var) + self.eps).rsqrt()
        scale = saved(torch.where(self.num_batches_tracked < self._warmup, batch_scale, running_scale))
        self.update_running(torch.zeros_like(mean_square), mean_square)
        return scale, batch_scale

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        if f"{prefix}nu" not in state_dict:  # of another norm
            load_initial_statistics(state_dict, prefix)
        load_zeros(self, state_dict, prefix, ("nu", "num_batches_tracked"))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        return (
            f"{super().extra_repr()}, num_groups={self.num_groups}, backward_momentum={self.backward_momentum}, "
            f"warmup_steps={self.warmup_steps}"
        )


class _Normalize(torch.autograd.Function):
    """``x`` scaled by ``scale``, with the published gradient, which moves ``nu`` on."""

    @staticmethod
    def forward(x: Tensor, scale: Tensor, batch_scale: Tensor, nu: Tensor, momentum: float) -> Tensor:
        return x * per_channel(scale, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *numbers, ctx.nu, ctx.momentum = inputs  # nu is not saved: other backward passes may write it before
        ctx.save_for_backward(*numbers)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None, None]:
        x, scale, batch_scale = ctx.saved_tensors
        z = x * per_channel(scale, x)
        nu = upcast(ctx.nu)
        g = upstream - per_channel(nu, x) * z
        moved = nu + ctx.momentum * (g * z).mean((0, *range(2, x.dim())))
        move(ctx.nu, moved)
        return g * per_channel(batch_scale, x), None, None, None, None
