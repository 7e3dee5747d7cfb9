"""Convolutions of several networks in one: bit for bit those of each network alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

_FEW_POSITIONS = 200
"""Positions ``N * H * W`` of a batch up to which torch's own convolution (im2col and a matrix product) beats oneDNN's,
whose set-up dominates there: measured for resnet-tiny on a CPU with AVX-512, alone and in a stack of three."""


def kernels(images: Tensor) -> AbstractContextManager[Any]:
    """The library that convolves in training, chosen by the shape of ``images`` ``[N, C, H, W]`` alone.

    It depends on nothing else, such as the time a trial took, because the libraries round differently.
    """
    if images.device.type == "cpu" and images.numel() // images.shape[1] <= _FEW_POSITIONS:
        return _without_onednn()
    return nullcontext()


@contextmanager
def _without_onednn() -> Iterator[None]:
    onednn: Any = torch.backends.mkldnn
    before = onednn.enabled
    onednn.enabled = False  # not flags(), which also sets what is not asked for, and warns
    try:
        yield
    finally:
        onednn.enabled = before


@dataclass(frozen=True)
class _Geometry:
    """What a convolution knows besides its tensors: ``groups`` of each network, ``count`` networks."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    count: int

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


class StackedConv2d(nn.Module):
    """The convolutions at one place of several networks, as one grouped convolution of their concatenated channels.

    Where the grouped kernel rounds otherwise than the plain one (some with few channels, 1x1), each network's
    part is computed alone: the output, the gradient of the input and that of weight and bias, each for itself.

    Args:
        modules: alike but for their parameters.
    """

    def __init__(self, modules: Sequence[nn.Conv2d]) -> None:
        super().__init__()
        first = modules[0]
        padding = first.padding
        if isinstance(padding, str) or first.padding_mode != "zeros":
            raise ValueError(f"padding {padding!r}, {first.padding_mode!r}; expected zeros, a number of each side")
        self.geometry = _Geometry(first.stride, padding, first.dilation, first.groups, len(modules))
        self.weight = nn.Parameter(torch.cat([module.weight.detach() for module in modules]))
        biases = [module.bias.detach() for module in modules if module.bias is not None]
        self.bias = nn.Parameter(torch.cat(biases)) if biases else None

    def forward(self, x: Tensor) -> Tensor:
        onednn = bool(torch.backends.mkldnn.enabled)
        exact = _exact(self.geometry, x.shape, self.weight.shape, self.bias is not None, onednn)
        if all(exact):
            return self.geometry.forward(x, self.weight, self.bias, self.geometry.groups * self.geometry.count)
        y: Tensor = _Convolve.apply(x, self.weight, self.bias, self.geometry, exact)
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
def _exact(geometry: _Geometry, shape: torch.Size, weight: torch.Size, bias: bool, onednn: bool) -> tuple[bool, ...]:
    """Which of (y, dx, dw, db) one grouped call computes as each network alone does, on random data of these shapes.

    Also asked: that what is NaN in one network stays there. ``onednn`` is whether it is on.
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
