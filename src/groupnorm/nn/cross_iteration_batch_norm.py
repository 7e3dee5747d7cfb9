"""Cross-Iteration Batch Normalization (Yao, Cao, Zheng, Huang & Lin 2021)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from groupnorm.errors import ArgumentError, WiringError
from groupnorm.nn.base import BatchTypeNorm, check_count, check_several, refuse_recomputation
from groupnorm.ops.checks import check_integer
from groupnorm.ops.moments import map_moments, per_map, pool
from groupnorm.sets import batch_set

_BATCH = batch_set()


@dataclass(frozen=True)
class _Past:
    """Statistics of an iteration, the weight they belong to, and their derivatives by it."""

    mean: Tensor  # [C]
    variance: Tensor  # [C]
    weight: Tensor  # [C, ...]
    mean_slope: Tensor  # [C, ...]: row c is the derivative of mean c by the weights of output channel c
    variance_slope: Tensor  # [C, ...]

    def at(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance at another weight, to first order."""
        step = weight.detach().to(self.weight.dtype) - self.weight
        shift = (self.mean_slope * step).flatten(1).sum(1)
        change = (self.variance_slope * step).flatten(1).sum(1)
        # the raw second moment is what is linear: var' = E[x^2]' - mean'^2 = var + change - shift^2
        return self.mean + shift, (self.variance + change - shift.square()).clamp(min=0)


class CrossIterationBatchNorm(BatchTypeNorm):
    r"""Batch norm whose mean and variance also hold the last iterations, brought to the weights of today.

    .. math:: \bar\mu = \frac1k \sum_{\tau<k} \mu_{t-\tau}(W_t), \quad
              \bar\nu = \frac1k \sum_{\tau<k} \max(\nu_{t-\tau}(W_t), \mu_{t-\tau}(W_t)^2), \quad
              \bar\sigma^2 = \bar\nu - \bar\mu^2

    where :math:`\nu = \mathrm{E}[x^2]` and :math:`\mu_{t-\tau}(W_t) = \mu_{t-\tau}(W_{t-\tau}) +
    \langle \partial\mu_{t-\tau}/\partial W, W_t - W_{t-\tau} \rangle`, with :math:`W` the weight of the convolution
    before this norm; the same for :math:`\nu`. Gradients flow through the current iteration alone.
    A past one that is not finite, as of a step that overflows in float16, counts as the current one again.

    It needs that convolution: :func:`groupnorm.wire_` attaches it. In training without gradients, and during the
    burn-in, it is batch norm. The window is part of the state_dict, under ``_extra_state``; a state_dict of batch norm
    loads too, and leaves the window empty. The forward pass differentiates, so torch.compile breaks its graph here.

    Args:
        num_features: number of channels ``C`` of the input.
        window: iterations ``k``, the current one included. Default: 4 (the authors' code; 3 past ones).
        eps: added to the variance, inside the square root. Default: 1e-5.
        momentum: weight of the newest batch in the running statistics; None averages. Default: 0.1.
        affine: learn a scale and a shift per channel. Default: True.
        burn_in_steps: training steps as batch norm. Default: 40,000, 8 of 100 epochs of ImageNet at batch 256.
        device: of the parameters and buffers.
        dtype: of the parameters and buffers.

    Shape:
        ``(N, C, *)`` in and out.

    Raises:
        ArgumentError: a window or a burn-in that cannot be, or an attached layer without one weight row per channel.
        WiringError: in training, no convolution is attached, or the input does not come from it.
        SingleElementError: in training, a channel has one element.

    Source: Yao et al. 2021 (arXiv:2002.05712), eqs. 5-9.
    """

    def __init__(
        self,
        num_features: int,
        window: int = 4,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        *,
        burn_in_steps: int = 40_000,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_count("window", window)
        check_integer("burn_in_steps", burn_in_steps)
        super().__init__(num_features, eps, momentum, affine, device=device, dtype=dtype)
        self.window, self.burn_in_steps = window, burn_in_steps
        self._burn_in = burn_in_steps
        self._layer: tuple[nn.Module, ...] = ()  # in a tuple, so that it is not a submodule of this one too

    def attach(self, convolution: nn.Module) -> None:
        """Take note of the convolution or linear layer whose output is this norm's input."""
        weight = _weight(convolution)
        if weight.shape[0] != self.num_features or getattr(convolution, "transposed", False):
            raise ArgumentError(
                f"{convolution} has a weight of shape {tuple(weight.shape)}; expected one row for each of the "
                f"{self.num_features} channels: use another norm after a transposed convolution"
            )
        self._layer = (convolution,)

    def set_total_steps(self, steps: int) -> None:
        """Burn in for at most the share of the training that the source does: 8 of 100 epochs."""
        check_count("steps", steps)
        self._burn_in = min(self.burn_in_steps, steps * 8 // 100)

    def reset_running_stats(self) -> None:
        """Set the running statistics back, and empty the window."""
        super().reset_running_stats()
        self._past: list[_Past] = []
        self._steps = 0  # num_batches_tracked, without waiting for the device

    def normalize_batch(self, x: Tensor) -> Tensor:
        if not self.tracks:
            return super().normalize_batch(x)
        if not self._layer:
            raise WiringError(
                "CrossIterationBatchNorm has no convolution attached; expected the layer before it: call "
                "groupnorm.wire_(model, example_input) once the model is built"
            )
        refuse_recomputation(self)
        elements = _BATCH.size(x.shape)
        check_several(elements, x.shape)
        means, variances = pool(*map_moments(x), _BATCH)
        mean, variance = means[0], variances[0]
        self.update_running(mean, variance * elements / (elements - 1))
        if self._steps >= self._burn_in and torch.is_grad_enabled():
            now = self._now(mean, variance)
            entries = [(mean, variance)]
            for past in self._past:
                old_mean, old_variance = past.at(now.weight)
                known = old_mean.isfinite() & old_variance.isfinite()  # not of a step that overflowed
                entries.append((torch.where(known, old_mean, mean), torch.where(known, old_variance, variance)))
            all_means = torch.stack([entry[0] for entry in entries])
            mean = all_means.mean(0)
            variance = torch.stack([entry[1] for entry in entries]).mean(0) + (all_means - mean).square().mean(0)
            self._past = [now, *self._past][: self.window - 1]
        self._steps += 1
        return (x - per_map(mean[None], x)) * per_map((variance + self.eps).rsqrt()[None], x)

    def _now(self, mean: Tensor, variance: Tensor) -> _Past:
        """The statistics of this iteration and their derivatives; each depends on its own row of the weight alone."""
        weight = _weight(self._layer[0])
        slopes = []
        for statistic in (mean, variance):
            connected = statistic.requires_grad and weight.requires_grad
            sums = statistic.sum()
            slope = torch.autograd.grad(sums, weight, retain_graph=True, allow_unused=True)[0] if connected else None
            if connected and slope is None:
                raise WiringError(
                    f"the input of {self} does not come from {self._layer[0]}; expected its output: wire the model "
                    f"again"
                )
            slopes.append(torch.zeros_like(weight) if slope is None else slope)
        copies = (mean, variance, weight, *slopes)
        return _Past(*(t.detach().to(mean.dtype, copy=True) for t in copies))

    def _apply(self, fn: Any, recurse: bool = True) -> CrossIterationBatchNorm:
        """Move the window with the module, as ``.to(device)`` does."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._past = [_Past(**{name: fn(t) for name, t in vars(past).items()}) for past in self._past]
        return self

    def get_extra_state(self) -> dict[str, Any]:
        """The window, for the state_dict."""
        return {"steps": self._steps, "past": [asdict(past) for past in self._past]}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on with a window from :meth:`get_extra_state`."""
        device = next((t.device for t in (*self.parameters(), *self.buffers())), None)
        self._steps = state["steps"]
        self._past = [_Past(**{name: t.to(device, copy=True) for name, t in past.items()}) for past in state["past"]]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        if f"{prefix}running_var" in state_dict:  # of batch norm, perhaps
            state_dict.setdefault(f"{prefix}_extra_state", {"steps": 0, "past": []})
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, window={self.window}, burn_in_steps={self.burn_in_steps}"


def _weight(layer: nn.Module) -> Tensor:
    """The parameter behind the weight of a layer: the original one where it is parametrised."""
    if parametrize.is_parametrized(layer, "weight"):
        original = getattr(layer.parametrizations.weight, "original", None)  # type: ignore[union-attr]
        if not isinstance(original, Tensor):
            raise ArgumentError(
                f"the weight of {type(layer).__name__} is made of several parameters; expected one, as standardisation "
                f"keeps it: use another norm, or parametrise the layer otherwise"
            )
        return original
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight
