"""Convolutions on small images, of one network or of several side by side with the very bits of each alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_FEW_CHANNELS = 4
_FEW_POSITIONS = 4096  # N * H * W of the output; above, unfolding costs more than oneDNN's set-up


@dataclass(frozen=True)
class _Geometry:
    """What a convolution of ``count`` networks knows besides its tensors; ``groups`` are those of each network."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    count: int

    def keeps_size(self, kernel: Sequence[int]) -> bool:
        """Whether the kernel's centre visits every position, and what it does not meet there is padding."""
        odd = all(side % 2 for side in kernel)
        return odd and self.padding == tuple(d * (side // 2) for d, side in zip(self.dilation, kernel, strict=True))

    def size(self, image: Sequence[int], kernel: Sequence[int]) -> tuple[int, ...]:
        """Of the output."""
        sides = zip(image, kernel, self.stride, self.padding, self.dilation, strict=True)
        return tuple((side + 2 * p - d * (k - 1) - 1) // s + 1 for side, k, s, p, d in sides)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
        zero = (0,) * len(self.stride)
        y: Tensor = torch.ops.aten.convolution.default(
            x, weight, bias, self.stride, self.padding, self.dilation, False, zero, groups
        )
        return y

    def backward(
        self, gradient: Tensor, x: Tensor, weight: Tensor, bias: bool, mask: Sequence[bool], groups: int
    ) -> list[Tensor | None]:
        sizes = [len(weight)] if bias else None
        rest = (self.stride, self.padding, self.dilation, False, (0,) * len(self.stride), groups, list(mask))
        return list(torch.ops.aten.convolution_backward.default(gradient, x, weight, sizes, *rest))

    def forward_each(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """As :meth:`forward`, a call for each network."""
        biases = bias.chunk(self.count) if bias is not None else [None] * self.count
        parts = zip(x.chunk(self.count, 1), weight.chunk(self.count), biases, strict=True)
        return torch.cat([self.forward(a.contiguous(), w, b, self.groups) for a, w, b in parts], 1)

    def backward_each(
        self, gradient: Tensor, x: Tensor, weight: Tensor, bias: bool, mask: Sequence[bool]
    ) -> list[Tensor | None]:
        """As :meth:`backward`, a call for each network."""
        parts = zip(gradient.chunk(self.count, 1), x.chunk(self.count, 1), weight.chunk(self.count), strict=True)
        each = [self.backward(g.contiguous(), a.contiguous(), w, bias, mask, self.groups) for g, a, w in parts]
        found: list[Tensor | None] = []
        for wanted, axis, tensors in zip(mask, (1, 0, 0), zip(*each, strict=True), strict=True):
            found.append(torch.cat([t for t in tensors if t is not None], axis) if wanted else None)
        return found


class Conv2d(nn.Conv2d):
    """torch's convolution, computed as :func:`convolve` does."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if input.dim() != 4 or isinstance(self.padding, str) or self.padding_mode != "zeros":
            y: Tensor = super()._conv_forward(input, weight, bias)
            return y
        return convolve(input, weight, bias, _Geometry(self.stride, self.padding, self.dilation, self.groups, 1))


class StackedConv2d(nn.Module):
    """The convolutions at one place of several networks, as one convolution of their concatenated channels.

    Args:
        modules: alike but for their parameters.
    """

    def __init__(self, modules: Sequence[nn.Conv2d]) -> None:
        super().__init__()
        first = modules[0]
        padding = first.padding
        if isinstance(padding, str) or first.padding_mode != "zeros":
            raise ValueError(f"padding {padding!r}, {first.padding_mode!r}; expected zeros, a number of each side")
        self.convolve = convolve if isinstance(first, Conv2d) else _by_library
        self.geometry = _Geometry(first.stride, padding, first.dilation, first.groups, len(modules))
        self.weight = nn.Parameter(torch.cat([module.weight.detach() for module in modules]))
        biases = [module.bias.detach() for module in modules if module.bias is not None]
        self.bias = nn.Parameter(torch.cat(biases)) if biases else None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.convolve(x, self.weight, self.bias, self.geometry)
        return y


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: _Geometry) -> Tensor:
    """The convolution of one or several networks, in a way that the shapes of one network decide alone.

    On a CPU oneDNN spends as long on the set-up of a small call as on its work, and multiplies the padding, too. Three
    kinds are therefore one matrix product for each network: a kernel of 1x1, one over few channels, and one on
    maps of 1x1, which meets them with its centre alone. In resnet-tiny at 2 to 32 images these take, forward and
    backward, a third to nine tenths of the library's time (measured on a CPU with AVX-512).

    Args:
        x: ``[N, S * C, H, W]``, the channels of S networks side by side.
        weight: ``[S * D, C, k, k]``.
        bias: ``[S * D]``.
        geometry: of the convolution.

    Returns:
        ``[N, S * D, H', W']``.
    """
    if x.device.type != "cpu" or geometry.groups != 1:
        return _by_library(x, weight, bias, geometry)
    kernel = weight.shape[2:]
    if x.shape[2:] == (1, 1) and geometry.keeps_size(kernel):
        centre = weight.flatten(2)[:, :, kernel.numel() // 2]
        return _product(x.flatten(2), centre, bias, geometry.count, (1, 1))
    if kernel == (1, 1) and geometry.padding == (0, 0):
        x = x[:, :, :: geometry.stride[0], :: geometry.stride[1]]
        return _product(x.flatten(2), weight.flatten(1), bias, geometry.count, x.shape[2:])
    if weight.shape[1] <= _FEW_CHANNELS:
        size = geometry.size(x.shape[2:], kernel)
        if len(x) * math.prod(size) <= _FEW_POSITIONS:
            columns = F.unfold(x, kernel, geometry.dilation, geometry.padding, geometry.stride)
            return _product(columns, weight.flatten(1), bias, geometry.count, size)
    return _by_library(x, weight, bias, geometry)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, count: int, size: Sequence[int]) -> Tensor:
    """``weight`` ``[S * D, K]`` times ``x`` ``[N, S * K, P]`` for each of S networks: ``[N, S * D, *size]``."""
    samples, _, positions = x.shape
    columns = x.reshape(samples, count, -1, positions).permute(1, 2, 0, 3).reshape(count, -1, samples * positions)
    y = torch.bmm(weight.reshape(count, -1, weight.shape[1]), columns)
    if (
        bias is not None
    ):  # a product, too: how the gradient of a plain addition is summed depends on the memory's layout
        y = torch.baddbmm(y, bias.view(count, -1, 1), columns.new_ones(()).expand(count, 1, samples * positions))
    y = y.view(count, -1, samples, positions).permute(2, 0, 1, 3).contiguous()  # in the layout the library has
    return y.view(samples, -1, *size)


def _by_library(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: _Geometry) -> Tensor:
    """As torch computes it: for several networks a grouped convolution, where it rounds as the plain one does.

    Where not (some kernels of 1x1, some with few channels), each network's part is computed alone: the
    output, the gradient of the input and that of weight and bias, each for itself.
    """
    groups = geometry.groups * geometry.count
    if geometry.count == 1:
        return F.conv2d(x, weight, bias, geometry.stride, geometry.padding, geometry.dilation, groups)
    exact = _exact(geometry, x.shape, weight.shape, bias is not None)
    if all(exact):
        return geometry.forward(x, weight, bias, groups)
    y: Tensor = _Convolve.apply(x, weight, bias, geometry, exact)
    return y


class _Convolve(torch.autograd.Function):
    """A convolution of several networks; ``exact``: which of (y, dx, dw, db) one grouped call may compute."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: _Geometry, exact: tuple[bool, ...]
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry, ctx.exact, ctx.bias = geometry, exact, bias is not None
        if exact[0]:
            return geometry.forward(x, weight, bias, geometry.groups * geometry.count)
        return geometry.forward_each(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, weight = ctx.saved_tensors
        g: _Geometry = ctx.geometry
        wanted = list(ctx.needs_input_grad[:3])
        together = [w and e for w, e in zip(wanted, ctx.exact[1:], strict=True)]
        alone = [w and not e for w, e in zip(wanted, ctx.exact[1:], strict=True)]
        found: list[Tensor | None] = [None, None, None]
        if any(together):
            found = g.backward(gradients[0], x, weight, ctx.bias, together, g.groups * g.count)
        if any(alone):
            each = g.backward_each(gradients[0], x, weight, ctx.bias, alone)
            found = [b if is_alone else a for a, b, is_alone in zip(found, each, alone, strict=True)]
        return *found, None, None


@cache
def _exact(geometry: _Geometry, shape: torch.Size, weight: torch.Size, bias: bool) -> tuple[bool, ...]:
    """Which of (y, dx, dw, db) one grouped call computes as each network alone does, on random data of these shapes.

    Also asked: that what is NaN in one network stays there.
    """
    generator = torch.Generator().manual_seed(0)
    groups = geometry.groups * geometry.count

    def draw(like: torch.Size) -> Tensor:
        return torch.randn(like, generator=generator)

    x, w, b = draw(shape), draw(weight), draw(weight[:1]) if bias else None
    mask = (True, True, b is not None)
    y = geometry.forward(x, w, b, groups)
    gradient = draw(y.shape)
    y_each = geometry.forward_each(x, w, b)
    each = [y_each, *geometry.backward_each(gradient, x, w, b is not None, mask)]
    grouped = [y, *geometry.backward(gradient, x, w, b is not None, mask, groups)]
    equal = [_same(a, c) for a, c in zip(grouped, each, strict=True)]
    for broken in (0, 1):
        tensors = [x.clone(), w.clone(), gradient.clone()]
        for tensor, axis in zip(tensors, (1, 0, 1), strict=True):
            for chunk in tensor.chunk(geometry.count, axis)[broken::2]:
                chunk.fill_(torch.nan)
        a, v, g = tensors
        after = [geometry.forward(a, v, b, groups), *geometry.backward(g, a, v, b is not None, mask, groups)]
        for place, (one, other, axis) in enumerate(zip(after, each, (1, 1, 0, 0), strict=True)):
            if one is not None and other is not None:
                pairs = zip(one.chunk(geometry.count, axis), other.chunk(geometry.count, axis), strict=True)
                equal[place] &= all(_same(p, q) for p, q in list(pairs)[1 - broken :: 2])
    return tuple(equal)


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))
