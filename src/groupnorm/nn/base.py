"""What the norms that torch does not have in common: checks, precision, the affine map, running statistics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from groupnorm.errors import ArgumentError, RecomputationError, ShapeError, SingleElementError
from groupnorm.ops.checks import check_eps, check_input, check_integer
from groupnorm.ops.moments import map_moments, per_map, pool, second_moment
from groupnorm.ops.reference import affine, per_channel
from groupnorm.sets import batch_set

_BATCH = batch_set()


class SampleNorm(nn.Module):
    """Base of the norms whose statistics come from the sample alone: training and evaluation compute the same.

    A subclass implements :meth:`normalize`, which sees at least float32 and leaves the affine map to this class.

    Args:
        num_channels: number of channels ``C`` of the input.
        eps: as the subclass says.
        affine: learn a scale and a shift per channel, starting at 1 and 0.
        device: of the parameters.
        dtype: of the parameters.
        bias: with ``affine``, learn the shift too.
    """

    __constants__ = ("affine", "eps", "num_channels")
    weight: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_count("num_channels", num_channels)
        check_eps(eps)
        self.num_channels, self.eps, self.affine = num_channels, eps, affine
        for name, wanted in (("weight", affine), ("bias", affine and bias)):
            empty = torch.empty(num_channels, device=device, dtype=dtype) if wanted else None
            self.register_parameter(name, None if empty is None else nn.Parameter(empty))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the scale to 1 and the shift to 0."""
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def normalize(self, x: Tensor) -> Tensor:
        """The normalised ``x[N, C, *]``, before the affine map."""
        raise NotImplementedError

    def forward(self, input: Tensor) -> Tensor:
        check_channels(input, self.num_channels)
        y = affine(self.normalize(upcast(input)), self.weight, self.bias)
        return y.to(input.dtype)

    def extra_repr(self) -> str:
        return f"{self.num_channels}, eps={self.eps}, affine={self.affine}"


class BatchTypeNorm(_BatchNorm):
    """Base of the norms with running statistics per channel, for inputs ``(N, C, *)`` of any rank.

    A subclass says in :meth:`normalize_batch` what training does; evaluation uses the running statistics as batch norm
    does, unless it says otherwise in :meth:`normalize_running`. Both see at least float32 and leave the affine map to
    this class. An empty batch passes through and leaves the running statistics alone.

    As in batch norm, training uses the batch alone where ``track_running_stats`` is off, and evaluation does too where
    the running statistics are None.

    Args:
        num_features: number of channels ``C`` of the input.
        eps: added to the variance, inside the square root.
        momentum: weight of the newest statistics in the running ones; None averages over all batches alike.
        affine: learn a scale and a shift per channel, starting at 1 and 0.
        track_running_stats: have running statistics.
        device: of the parameters and buffers.
        dtype: of the parameters and buffers.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_count("num_features", num_features)
        check_eps(eps)
        check_fraction("momentum", momentum)
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)
        self._least_momentum = 0.0

    def shorten_memory(self, steps: int) -> None:
        """Let the running statistics remember at most a tenth of a training of ``steps`` forward passes.

        A published momentum of 0.01 remembers 100 batches; after a run of 200 it would still hold a seventh of where
        it started. The momentum grows to at most 0.1, that of batch norm.
        """
        check_count("steps", steps)
        self._least_momentum = min(0.1, 10 / steps)

    @property
    def has_running(self) -> bool:
        """Whether the layer has running statistics, which evaluation uses."""
        return all(self._buffers[name] is not None for name in ("running_mean", "running_var"))

    @property
    def tracks(self) -> bool:
        """Whether training moves the running statistics."""
        return self.track_running_stats and self.has_running

    @property
    def counts(self) -> bool:
        """Whether training also counts its batches, which a norm needs that follows a schedule."""
        return self.tracks and self._buffers["num_batches_tracked"] is not None

    def normalize_batch(self, x: Tensor) -> Tensor:
        """The normalised ``x[N, C, *]`` in training, before the affine map; updates the running statistics.

        Here it is batch norm, which several norms are one step of.
        """
        elements = _BATCH.size(x.shape)
        check_several(elements, x.shape)
        mean, variance = pool(*map_moments(x), _BATCH)
        self.update_running(mean[0], variance[0] * elements / (elements - 1))
        return (x - per_map(mean, x)) * per_map((variance + self.eps).rsqrt(), x)

    def normalize_mean_square(self, x: Tensor) -> Tensor:
        """``x`` by the mean square of the batch, in place of mean and variance."""
        mean_square = second_moment(x).mean(0)
        self.update_running(torch.zeros_like(mean_square), mean_square)
        return x * per_channel((mean_square + self.eps).rsqrt(), x)

    def normalize_running(self, x: Tensor) -> Tensor:
        """The normalised ``x[N, C, *]`` in evaluation, before the affine map."""
        scale = (upcast(self.running_var) + self.eps).rsqrt()
        return (x - per_channel(upcast(self.running_mean), x)) * per_channel(scale, x)

    def forward(self, input: Tensor) -> Tensor:
        check_channels(input, self.num_features)
        x = upcast(input)
        if not self.training and self.has_running:
            x = self.normalize_running(x)
        elif input.numel() > 0:
            x = self.normalize_batch(x)
        else:  # DistributedDataParallel waits for a gradient of every parameter: these are zeros
            x = x + sum(parameter.sum() for parameter in self.parameters())
        return affine(x, self.weight, self.bias).to(input.dtype)

    @torch.no_grad()
    def update_running(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics towards those of a batch, ``[C]`` each, and count the batch.

        Those that are not finite, as in a step that overflows in float16, are left out.
        """
        if not self.tracks:
            return
        if self.counts:
            self.num_batches_tracked.add_(1)
        mean, variance = self.moved(mean, variance, self.newest())
        mean = torch.where(variance.isfinite(), mean, torch.nan)  # squares overflow first
        move(self.running_mean, mean)
        move(self.running_var, variance)

    def moved(self, mean: Tensor, variance: Tensor, newest: float | Tensor) -> tuple[Tensor, Tensor]:
        """Where the running statistics go from here by those of a batch, which weigh ``newest``."""
        pairs = (self.running_mean, mean), (self.running_var, variance)
        mean, variance = (running + (value - running) * newest for running, value in pairs)
        return mean, variance

    def newest(self) -> float | Tensor:
        """Weight in the running statistics of the batch that was counted last."""
        if self.momentum is None:
            return 1.0 / self.num_batches_tracked.double() if self.counts else 0.0
        return max(self.momentum, self._least_momentum)

    def extra_repr(self) -> str:
        untracked = "" if self.track_running_stats else ", track_running_stats=False"
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}{untracked}"


def move(running: Tensor, value: Tensor) -> None:
    """Set a running statistic in place, but for its entries that would no longer be finite in its dtype."""
    value = value.to(running.dtype)
    running.copy_(torch.where(value.isfinite(), value, running))


def load_zeros(norm: nn.Module, state_dict: dict[str, Any], prefix: str, names: tuple[str, ...]) -> None:
    """Complete a state dict of batch norm, which lacks the first of these buffers: all of them become 0."""
    running = state_dict.get(f"{prefix}running_var")
    if running is not None and f"{prefix}{names[0]}" not in state_dict:
        for name in names:
            if (buffer := norm._buffers[name]) is not None:
                state_dict[f"{prefix}{name}"] = torch.zeros_like(buffer, device=running.device)


def load_initial_statistics(state_dict: dict[str, Any], prefix: str) -> None:
    """Exchange the running statistics in a state dict for those that a new norm has."""
    for name, value in (("running_mean", 0), ("running_var", 1), ("num_batches_tracked", 0)):
        if (tensor := state_dict.get(f"{prefix}{name}")) is not None:
            state_dict[f"{prefix}{name}"] = torch.full_like(tensor, value)


def refuse_recomputation(norm: nn.Module) -> None:
    """Raise when a backward pass runs the forward pass again, as gradient checkpointing does.

    A norm whose training output depends on its running statistics would see them moved by the first forward pass, and
    give gradients of another function.
    """
    if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
        raise RecomputationError(
            f"the backward pass runs the forward pass of {type(norm).__name__} again, as gradient checkpointing does; "
            f"expected one forward pass, because it moves statistics that the next one uses: leave this layer out of "
            f"the checkpointed part, or use a norm without a memory there, such as 'gn'"
        )


def upcast(x: Tensor) -> Tensor:
    """Half precisions as float32, so that squares neither overflow nor lose their digits; others as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def check_count(name: str, value: int) -> None:
    """Raise unless ``value`` is an integer of at least 1."""
    check_integer(name, value)
    if value < 1:
        raise ArgumentError(f"{name}={value}; expected at least 1")


def check_flag(name: str, value: bool) -> None:
    """Raise unless ``value`` is True or False; the name of an activation is neither."""
    if not isinstance(value, bool):
        raise ArgumentError(f"{name}={value!r}; expected True or False")


def check_fraction(name: str, value: float | None) -> None:
    """Raise unless ``value`` is None or a number from 0 to 1."""
    if value is not None and not (isinstance(value, (int, float)) and 0 <= value <= 1):
        raise ArgumentError(f"{name}={value!r}; expected a number from 0 to 1, the weight of the newest value, or None")


def check_channels(input: Tensor, num_channels: int) -> None:
    """Raise unless ``input`` is a floating point tensor ``[N, num_channels, *]``."""
    check_input(input)
    if input.shape[1] != num_channels:
        raise ShapeError(
            f"input has shape {tuple(input.shape)}, {input.shape[1]} channels; expected (N, C, *) with "
            f"C={num_channels}: channels come second"
        )


def check_several(elements: int, shape: torch.Size) -> None:
    """Raise when only one element shares a mean and a variance, so that the output would be the bias."""
    if elements == 1:
        raise SingleElementError(
            f"input {tuple(shape)} has 1 element for each mean and variance, so the output is the bias whatever the "
            f"input; expected at least 2: use a larger batch, larger feature maps, or a norm over several channels"
        )
