"""Synchronised Batch Normalization (Peng et al. 2018): torch's class, also on devices that torch's refuses."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from groupnorm.nn.base import check_channels, check_several, upcast
from groupnorm.ops.moments import map_moments
from groupnorm.ops.reference import affine, per_channel

_TORCHS = ("cuda", "hpu", "xpu", torch._C._get_privateuse1_backend_name())


class SyncBatchNorm(nn.SyncBatchNorm):
    r"""Batch norm over the batches of all processes; a drop-in for :class:`torch.nn.SyncBatchNorm`.

    Torch's class computes on GPUs and refuses CPU tensors. This one leaves the GPUs to torch and adds the rest, over
    any process group (gloo), so that what trains on a cluster can be tested on a laptop. The processes merge their
    counts, means and variances as Chan et al. (1983) do, so that batches of different sizes, and empty ones, count for
    what they hold.

    In a single process, and in evaluation, it is batch norm.

    Args:
        num_features: number of channels ``C`` of the input.
        eps: added to the variance, inside the square root. Default: 1e-5.
        momentum: weight of the newest statistics in the running ones; None averages. Default: 0.1.
        affine: learn a scale and a shift per channel. Default: True.
        track_running_stats: keep running statistics for evaluation. Default: True.
        process_group: the processes that share statistics. Default: all.
        device: of the parameters and buffers.
        dtype: of the parameters and buffers.

    Shape:
        ``(N, C, *)`` in and out.

    Raises:
        ShapeError: the input has fewer than two axes or not ``num_features`` channels.
        SingleElementError: in training, all processes together have one element per channel.

    Source: Peng et al. 2018 (MegDet, arXiv:1711.07240), section 3.3.
    """

    def forward(self, input: Tensor) -> Tensor:
        check_channels(input, self.num_features)
        synchronised = self.training and dist.is_available() and dist.is_initialized()
        if not synchronised or input.device.type in _TORCHS:
            if self.training and not synchronised:
                check_several(input.numel() // self.num_features, input.shape)
            return super().forward(input)
        x = upcast(input)
        mean, variance, count = self._moments(x)
        check_several(int(count), input.shape)
        self._update_running(mean.detach(), variance.detach(), float(count))
        scale = (variance + self.eps).rsqrt()
        y = (x - per_channel(mean, x)) * per_channel(scale, x)
        return affine(y, self.weight, self.bias).to(input.dtype)

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and biased variance ``[C]`` over all processes, and how many elements each is made of."""
        count = x.new_tensor([x.numel() / self.num_features])
        if x.numel() == 0:
            # a process without samples takes part in the sums, forward and backward
            mean = variance = x.sum((0, *range(2, x.dim())))
        else:
            means, variances = map_moments(x)
            mean = means.mean(0)
            variance = (variances + (means - mean).square()).mean(0)
        total = _sum(count, self.process_group)
        share = count / total
        joint = _sum(mean * share, self.process_group)
        return joint, _sum((variance + (mean - joint).square()) * share, self.process_group), total

    @torch.no_grad()
    def _update_running(self, mean: Tensor, variance: Tensor, count: float) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        newest = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), newest)
        self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var.dtype), newest)


class _Sum(torch.autograd.Function):
    """The sum over all processes; each process receives the sum of the gradients of all."""

    @staticmethod
    def forward(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        total = x.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, dist.ProcessGroup | None], output: Tensor) -> None:
        ctx.group = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _sum(grad, ctx.group), None


def _sum(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    total: Tensor = _Sum.apply(x, group)
    return total
