"""The two networks that Stable Diffusion spends its time in, in plain PyTorch, of the sizes that diffusers has them in.

Rombach et al. 2022 (arXiv:2112.10752). Norms are PyTorch's, each with its activation after it as a module, as libraries
have them. Weights are random.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    """Two convolutions, each after a norm and SiLU; with a time embedding, its projection is added in between."""

    def __init__(self, inputs: int, outputs: int, time: int | None = None) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(32, inputs, eps=1e-6)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.project = nn.Linear(time, outputs) if time else None
        self.norm2 = nn.GroupNorm(32, outputs, eps=1e-6)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.act = nn.SiLU()

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        h = self.conv1(self.act(self.norm1(x)))
        if self.project is not None and time is not None:
            h = h + self.project(self.act(time))[:, :, None, None]
        h = self.conv2(self.act(self.norm2(h)))
        found: Tensor = self.shortcut(x) + h
        return found


class Attention(nn.Module):
    """Attention of several heads from ``x[N, L, C]`` to a context ``[N, M, K]``, or to itself."""

    def __init__(self, channels: int, heads: int, context: int | None = None, bias: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(channels, channels, bias=bias)
        self.key_value = nn.Linear(context or channels, 2 * channels, bias=bias)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        key, value = self.key_value(x if context is None else context).chunk(2, -1)
        split = [t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (self.query(x), key, value)]
        found: Tensor = self.out(F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(-2))
        return found


class MapAttention(nn.Module):
    """Attention over the positions of a map, of one head, after a norm: the middle of the decoder."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, channels, eps=1e-6)
        self.attend = Attention(channels, 1, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.attend(self.norm(x).flatten(2).transpose(1, 2))
        return x + h.transpose(1, 2).view_as(x)


class Transformer(nn.Module):
    """A map as a sequence: attention to itself, attention to the context, and a gated linear layer."""

    def __init__(self, channels: int, context: int, heads: int = 8) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, channels, eps=1e-6)
        self.enter, self.leave = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))
        self.itself, self.context = Attention(channels, heads), Attention(channels, heads, context)
        self.widen, self.narrow = nn.Linear(channels, 8 * channels), nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        h = self.enter(self.norm(x)).flatten(2).transpose(1, 2)
        h = h + self.itself(self.norm1(h))
        h = h + self.context(self.norm2(h), context)
        value, gate = self.widen(self.norm3(h)).chunk(2, -1)
        h = h + self.narrow(value * F.gelu(gate))
        found: Tensor = x + self.leave(h.transpose(1, 2).reshape(x.shape))
        return found


class Upsample(nn.Module):
    """Twice the height and the width, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return found


class Decoder(nn.Module):
    """The decoder of the image VAE: latents ``[N, 4, H, W]`` to images ``[N, 3, 8 H, 8 W]``.

    Args:
        channels: of the levels, from the finest to the coarsest; multiples of 32.
    """

    def __init__(self, channels: Sequence[int] = (128, 256, 512, 512)) -> None:
        super().__init__()
        width = channels[-1]
        self.enter = nn.Conv2d(4, width, 3, padding=1)
        steps: list[nn.Module] = [Residual(width, width), MapAttention(width), Residual(width, width)]
        for level, outputs in enumerate(reversed(channels)):
            for _ in range(3):
                steps.append(Residual(width, outputs))
                width = outputs
            if level < len(channels) - 1:
                steps.append(Upsample(width))
        self.steps = nn.Sequential(*steps)
        self.norm, self.act = nn.GroupNorm(32, width, eps=1e-6), nn.SiLU()
        self.leave = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.steps(self.enter(latents))
        found: Tensor = self.leave(self.act(self.norm(x)))
        return found


class UNet(nn.Module):
    """The conditional UNet: noisy latents ``[N, 4, H, W]``, times ``[N]``, context ``[N, L, K]`` to noise.

    Args:
        channels: of the levels, from the finest to the coarsest; multiples of 32. All but the coarsest have attention.
        context: ``K``.
    """

    def __init__(self, channels: Sequence[int] = (320, 640, 1280, 1280), context: int = 768) -> None:
        super().__init__()
        first, time = channels[0], 4 * channels[0]
        self.embed = nn.Sequential(nn.Linear(first, time), nn.SiLU(), nn.Linear(time, time))
        self.enter = nn.Conv2d(4, first, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        width, skips = first, [first]
        for level, outputs in enumerate(channels):
            coarsest = level == len(channels) - 1
            for _ in range(2):
                self.down.append(_Step(width, outputs, time, None if coarsest else context))
                width = outputs
                skips.append(width)
            if not coarsest:
                self.down.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
                skips.append(width)
        self.middle = nn.ModuleList([_Step(width, width, time, context), _Step(width, width, time, None)])
        for level, outputs in reversed(list(enumerate(channels))):
            for _ in range(3):
                attends = None if level == len(channels) - 1 else context
                self.up.append(_Step(width + skips.pop(), outputs, time, attends))
                width = outputs
            if level:
                self.up.append(Upsample(width))
        self.norm, self.act = nn.GroupNorm(32, width), nn.SiLU()
        self.leave = nn.Conv2d(width, 4, 3, padding=1)

    def forward(self, x: Tensor, times: Tensor, context: Tensor) -> Tensor:
        time = self.embed(_waves(times, self.enter.out_channels).to(x.dtype))
        x = self.enter(x)
        skips = [x]
        for step in self.down:
            x = step(x, time, context) if isinstance(step, _Step) else step(x)
            skips.append(x)
        for step in self.middle:
            x = step(x, time, context)
        for step in self.up:
            x = step(torch.cat([x, skips.pop()], 1), time, context) if isinstance(step, _Step) else step(x)
        found: Tensor = self.leave(self.act(self.norm(x)))
        return found


class _Step(nn.Module):
    """A residual, and attention where there is a context."""

    def __init__(self, inputs: int, outputs: int, time: int, context: int | None) -> None:
        super().__init__()
        self.residual = Residual(inputs, outputs, time)
        self.attend = Transformer(outputs, context) if context else None

    def forward(self, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        h: Tensor = self.residual(x, time)
        return h if self.attend is None else self.attend(h, context)


def _waves(times: Tensor, size: int) -> Tensor:
    """Cosines and sines of the times, ``[N, size]``."""
    rates = torch.exp(-math.log(10_000) * torch.arange(size // 2, device=times.device) / (size // 2))
    angles = times[:, None].float() * rates
    return torch.cat([angles.cos(), angles.sin()], 1)
