"""The tensors of a case: ordinary input, and the hostile kinds that break kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from groupnorm.bench.cases import Case


class Tensors(NamedTuple):
    """What a norm is called with.

    Attributes:
        x: input ``[N, C, *]``; takes a gradient.
        weight: scale ``[C]`` in the dtype of ``x``, as ``model.bfloat16()`` leaves it; takes a gradient.
        bias: shift ``[C]``, likewise.
        dy: gradient of the output: random, in the layout of ``x``. That of a sum would be zero.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor
    dy: Tensor


def tensors(case: Case, device: str, fill: Callable[[Tensor, int], Tensor] | None = None) -> Tensors:
    """Inputs of mean 0.5 and standard deviation 1.5, the same for the same case and device.

    Args:
        case: shape, dtype and layout.
        device: "cpu" or "cuda".
        fill: ``fill(x, groups)`` overwrites ``x`` and returns it; None leaves the ordinary numbers.
    """
    dtype, channels = case.torch_dtype, case.shape.size[1]
    generator = torch.Generator(device).manual_seed(0)

    def normal(mean: float, std: float) -> Tensor:
        empty = torch.empty(case.shape.size, dtype=dtype, device=device, memory_format=case.memory_format)
        return empty.normal_(mean, std, generator=generator)

    x = normal(0.5, 1.5)
    if fill is not None:
        x = fill(x, case.shape.groups)
    weight = torch.empty(channels, dtype=dtype, device=device).uniform_(0.5, 1.5, generator=generator)
    bias = torch.empty(channels, dtype=dtype, device=device).normal_(0, 0.5, generator=generator)
    dy = normal(0, 1) if case.trains else torch.empty(0)
    for t in (x, weight, bias):
        t.requires_grad_(case.trains)
    return Tensors(x, weight, bias, dy)


def _far_from_zero(x: Tensor, groups: int) -> Tensor:
    return x.sub_(0.5).div_(1.5).add_(1e4)


def _near_the_largest(x: Tensor, groups: int) -> Tensor:
    """Up to 6e4 of the 65504 that fp16 holds."""
    return x.tanh_().mul_(6e4)


def _constant_groups(x: Tensor, groups: int) -> Tensor:
    """A constant for each group and sample, none a round number."""
    values = torch.linspace(-3.3, 7.7, x.shape[0] * groups, device=x.device).view(x.shape[0], groups)
    return x.copy_(values.repeat_interleave(x.shape[1] // groups, 1).view(*x.shape[:2], *[1] * (x.dim() - 2)))


def _outlier(x: Tensor, groups: int) -> Tensor:
    """One in the last group of the last sample; fp16 takes no more than 6e4."""
    x[(-1,) * x.dim()] = 6e4 if x.dtype == torch.float16 else 1e6
    return x


HOSTILE: dict[str, Callable[[Tensor, int], Tensor]] = {
    "mean 1e4, std 1": _far_from_zero,
    "up to 6e4": _near_the_largest,
    "constant groups": _constant_groups,
    "one outlier of 1e6": _outlier,
}
"""By what is wrong with them."""
