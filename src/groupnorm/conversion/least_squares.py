"""Least squares over batches that come one after the other: per channel, and for a whole linear layer."""

from __future__ import annotations

import torch
from torch import Tensor


class ChannelFit:
    """Scale and shift per channel that bring ``a`` nearest to ``t`` over everything added, ``[N, C, *]`` each.

    Data may come several times over, from a network that changes in between: what an earlier pass added counts less and
    less, and not at all at the end of the pass.

    Args:
        channels: number of channels.
        device: of the sums, which are float64.
    """

    def __init__(self, channels: int, device: torch.device) -> None:
        self._now = torch.zeros(6, channels, dtype=torch.float64, device=device)
        self._before = torch.zeros_like(self._now)

    def add(self, a: Tensor, t: Tensor) -> None:
        """Count a batch."""
        a, t = a.double(), t.double()
        axes = (0, *range(2, a.dim()))
        count = torch.full_like(self._now[0], a.numel() / a.shape[1])
        self._now += torch.stack([count, *(s.sum(axes) for s in (a, t, a * a, a * t, t * t))])

    def turn(self) -> None:
        """A new pass over the data begins."""
        self._before, self._now = self._now, torch.zeros_like(self._now)

    def _moments(self, done: float) -> tuple[Tensor, ...]:
        sums = self._now + (1 - done) * self._before
        a, t, aa, at, tt = sums[1:] / sums[0].clamp_min(1)
        return a, t, (aa - a * a).clamp_min(0), at - a * t, (tt - t * t).clamp_min(0)

    def solve(self, done: float) -> tuple[Tensor, Tensor]:
        """Scale and shift, ``[C]`` each, where this share of the pass is done; a constant channel gets scale 0."""
        a, t, variance, covariance, _ = self._moments(done)
        scale = torch.where(variance > 0, covariance / variance.clamp_min(1e-30), 0)
        return scale, t - scale * a

    def unexplained(self) -> float:
        """Share of the variance of ``t`` that is left, over all channels."""
        _, _, variance, covariance, total = self._moments(1.0)
        explained = torch.where(variance > 0, covariance**2 / variance.clamp_min(1e-30), 0)
        return float(1 - explained.sum() / total.sum().clamp_min(1e-30))


class LinearFit:
    """The change of a linear layer that brings its outputs nearest to ``t``, with a pull back to where it was.

    Args:
        weight: ``[D, K]`` of the layer.
        bias: ``[D]``, or None.
        ridge: the pull, relative to the mean square of the inputs.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, ridge: float) -> None:
        self.weight, self.bias, self.ridge = weight, bias, ridge
        size = weight.shape[1] + (bias is not None)
        self.counted = False
        self._gram = torch.zeros(size, size, dtype=torch.float64, device=weight.device)
        self._cross = torch.zeros(size, len(weight), dtype=torch.float64, device=weight.device)

    def add(self, x: Tensor, y: Tensor, t: Tensor) -> None:
        """Count inputs ``[*, K]``, the outputs of the layer as it is, and those it should have, ``[*, D]``."""
        self.counted = True
        x = x.double().flatten(0, -2)
        if self.bias is not None:
            x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
        self._gram += x.T @ x
        self._cross += x.T @ (t.double() - y.double()).flatten(0, -2)

    def apply(self) -> None:
        """Change weight and bias."""
        pull = self.ridge * self._gram.diagonal().mean().clamp_min(1e-30)
        change = torch.linalg.solve(self._gram + pull * torch.eye(len(self._gram)).to(self._gram), self._cross)
        with torch.no_grad():
            self.weight += change[: self.weight.shape[1]].T.to(self.weight.dtype)
            if self.bias is not None:
                self.bias += change[-1].to(self.bias.dtype)
