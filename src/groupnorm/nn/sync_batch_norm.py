"""Synchronised Batch Normalization (Peng et al. 2018): torch's class, also on devices that torch's refuses."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from groupnorm.nn.base import BatchTypeNorm, check_channels, check_several, upcast
from groupnorm.ops.moments import map_moments
from groupnorm.ops.reference import affine, per_channel

_TORCHS = ("cuda", "hpu", "xpu", torch._C._get_privateuse1_backend_name())


class SyncBatchNorm(BatchTypeNorm):
    r"""Batch norm over the batches of all processes: :class:`torch.nn.SyncBatchNorm`, on any device.

    Torch's class computes on GPUs and refuses CPU tensors, and DistributedDataParallel refuses that class on a CPU, so
    this one does not derive from it. It leaves the GPUs to torch's computation and adds the rest, over
    any process group (gloo), so that what trains on a cluster can be tested on a laptop. The processes merge their
    counts, means and variances as Chan et al. (1983) do, so that batches of different sizes, and empty ones, count for
    what they hold.

    In a single process, and in evaluation, it is batch norm.

    Args:
        num_features: number of channels ``C`` of the input.
        eps: added to the variance, inside the square root. Default: 1e-5.
        momentum: weight of the newest statistics in the running ones; None averages. Default: 0.1.
        affine: learn a scale and a shift per channel. Default: True.
        track_running_stats: have running statistics; without them evaluation uses those of the batch, of this process
            alone. Default: True.
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

    _check_input_dim = nn.SyncBatchNorm._check_input_dim
    _check_non_zero_input_channels = nn.SyncBatchNorm._check_non_zero_input_channels

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: dist.ProcessGroup | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)
        self.process_group = process_group

    def forward(self, input: Tensor) -> Tensor:
        if self.training and dist.is_available() and dist.is_initialized():
            check_channels(input, self.num_features)
            if input.device.type in _TORCHS:
                y: Tensor = nn.SyncBatchNorm.forward(self, input)  # type: ignore[arg-type]
                return y
            # an empty batch too takes part in the sums of the others
            return affine(self.normalize_batch(upcast(input)), self.weight, self.bias).to(input.dtype)
        return super().forward(input)

    def normalize_batch(self, x: Tensor) -> Tensor:
        if not (self.training and dist.is_available() and dist.is_initialized()):
            return super().normalize_batch(x)
        mean, variance, count = self._moments(x)
        check_several(int(count), x.shape)
        self.update_running(mean.detach(), variance.detach() * count / (count - 1))
        return (x - per_channel(mean, x)) * per_channel((variance + self.eps).rsqrt(), x)

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
