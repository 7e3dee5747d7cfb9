"""Fit the norms of a converted model to those it was converted from, on real inputs and without labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from groupnorm.conversion.least_squares import ChannelFit, LinearFit
from groupnorm.conversion.probe import evaluating, inputs_of, run
from groupnorm.conversion.rules import Facts, facts
from groupnorm.conversion.watch import Call, Watch
from groupnorm.errors import ArgumentError, ConversionError
from groupnorm.functional import group_norm
from groupnorm.nn.base import SampleNorm, upcast
from groupnorm.nn.group_norm import GroupNorm

RIDGE = 1e-3
"""Pull of a linear layer to its weights, relative to the mean square of its inputs."""


@dataclass
class Calibration:
    """What :func:`calibrate_` did.

    Attributes:
        unexplained: for each norm, by path, the share of the variance of the original's output that it does not give.
        left: norms that could not be fitted, and why.
    """

    unexplained: dict[str, float] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    _before: list[tuple[Tensor, Tensor]] = field(default_factory=list, repr=False)

    @torch.no_grad()
    def undo(self) -> None:
        """Give every parameter that was fitted the value it had before."""
        for tensor, value in self._before:
            tensor.copy_(value)


def calibrate_(
    converted: nn.Module,
    original: nn.Module,
    data: Iterable[Any],
    *,
    passes: int = 2,
    linear: bool = True,
    progress: Callable[[int], None] = lambda done: None,
) -> Calibration:
    """Fit a converted model to its original, in place: scale and shift of each norm, then the linear layers.

    Both run side by side in evaluation mode, without gradients. From the first norm to the last, scale and shift of
    each channel become those that bring the norm's output nearest to the original's in least squares. Where the output
    is added to another branch, it is the sum that is brought near: what the other branch has wrong is made good. Each
    linear layer is then changed, by ridge regression, towards the outputs that the original has. Labels are not used.

    Args:
        converted: a model from :func:`groupnorm.convert`, whose norms are group, layer, instance, RMS or filter
            response norms.
        original: the model it came from.
        data: batches of inputs, or of tuples that begin with the inputs; a few hundred images are enough. They are held
            in memory, and used ``passes`` times and once more for the linear layers.
        passes: over the data for the norms. Default: 2.
        linear: fit the linear layers, too. Default: True.
        progress: called after each batch with the number of batches done.

    Returns:
        What is left unexplained of each norm, and ``undo()``.

    Raises:
        ArgumentError: no data, ``passes`` below 1, or models on two devices.
        ConversionError: the models have no norms at the same paths that differ.

    Example::

        >>> converted = groupnorm.convert(model, "gn")
        >>> groupnorm.calibrate_(converted, model, (images for images, labels in loader))
    """
    if passes < 1:
        raise ArgumentError(f"passes={passes}; expected at least 1")
    batches = data if isinstance(data, (list, tuple)) else list(data)
    if not batches:
        raise ArgumentError("data has no batches; expected some inputs of the model, a few hundred images")
    _check_devices(converted, original)
    result = Calibration()
    olds, news = _norms(converted, original, result.left)
    linears = _linears(converted, original) if linear else {}
    for module in (*news.values(), *(new for new, _ in linears.values())):
        result._before += [(p, p.detach().clone()) for p in module.parameters(recurse=False)]
    fits: dict[str, ChannelFit] = {}
    done = 0
    with torch.no_grad(), evaluating(converted), evaluating(original):
        for _ in range(passes):
            for fit in fits.values():
                fit.turn()
            for number, batch in enumerate(batches, start=1):
                with _Targets(olds) as targets:
                    run(original, inputs_of(batch, original))
                with _Fitting(news, targets, fits, number / len(batches)):
                    run(converted, inputs_of(batch, converted))
                progress(done := done + 1)
        if linears:
            changes = {path: LinearFit(new.weight, new.bias, RIDGE) for path, (new, _) in linears.items()}
            for batch in batches:
                _count(changes, linears, converted, original, inputs_of(batch, converted))
                progress(done := done + 1)
            for change in changes.values():
                change.apply()
    result.unexplained = {name: fit.unexplained() for name, fit in fits.items()}
    return result


def _check_devices(converted: nn.Module, original: nn.Module) -> None:
    devices = [str(next(model.parameters()).device) for model in (converted, original)]
    if devices[0] != devices[1]:
        raise ArgumentError(
            f"the converted model is on {devices[0]} and the original on {devices[1]}; expected both on one device: "
            f"move one with .to()"
        )


def _norms(
    converted: nn.Module, original: nn.Module, left: dict[str, str]
) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
    """The norms of the original that differ from those of the converted model, and these, by path.

    Args:
        converted: the model to fit.
        original: the model it came from.
        left: gets the norms that cannot be fitted, and why.
    """
    all_olds = dict(original.named_modules())
    olds: dict[str, nn.Module] = {}
    news: dict[str, nn.Module] = {}
    for path, new in converted.named_modules():
        old = all_olds.get(path)
        if old is None or facts(new) is None or facts(old) is None:
            continue
        if type(old) is type(new) and old.extra_repr() == new.extra_repr():  # with other groups it is another norm
            continue
        if not isinstance(new, (GroupNorm, SampleNorm)):
            left[path] = f"{type(new).__name__} has statistics of batches: recompute those instead"
        elif new.weight is None or new.bias is None:
            left[path] = f"{type(new).__name__} has no scale and shift to fit"
        else:
            olds[path], news[path] = old, new
    if not news:
        raise ConversionError(
            f"no norms to fit{f', but {left}' if left else ''}; expected a model and what groupnorm.convert() made of "
            f"it, a copy with group, layer, instance, RMS or filter response norms"
        )
    return olds, news


class _Targets(Watch):
    """The outputs of the original's norms before their activations, and the sums they go into."""

    def __init__(self, norms: Mapping[str, nn.Module]) -> None:
        super().__init__(norms)
        self.outputs: dict[tuple[str, int], Tensor] = {}
        self.sums: dict[tuple[str, int], Tensor] = {}

    def after(self, call: Call) -> Tensor:
        known = facts(call.norm)
        assert known is not None
        y = call.y if not (known.after or known.activation) else _unactivated(call.norm, call.x, known)
        self.outputs[call.key] = y.clone()
        return call.y

    def sum(self, call: Call, other: Tensor) -> Tensor:
        total = call.y + other
        self.sums[call.key] = total.clone()
        return total


class _Fitting(Watch):
    """Fits each norm as it is reached, and once more when its output is added to another branch."""

    def __init__(self, norms: Mapping[str, nn.Module], targets: _Targets, fits: dict[str, ChannelFit], done: float):
        super().__init__(norms)
        self.targets, self.fits, self.done = targets, fits, done

    def after(self, call: Call) -> Tensor:
        return self._fit(call.path, call, self.targets.outputs.get(call.key))

    def sum(self, call: Call, other: Tensor) -> Tensor:
        wanted = self.targets.sums.get(call.key)
        if wanted is None:
            return call.y + other
        return self._fit(f"{call.path} in a sum", call, wanted - other) + other

    def _fit(self, name: str, call: Call, target: Tensor | None) -> Tensor:
        weight, bias = call.norm.weight, call.norm.bias
        assert isinstance(weight, Tensor) and isinstance(bias, Tensor)  # noqa: PT018
        if target is None:
            return call.y
        if name not in self.fits:
            self.fits[name] = ChannelFit(len(weight), weight.device)
        self.fits[name].add(_normalized(call.norm, call.x), target)
        scale, shift = self.fits[name].solve(self.done)
        weight.copy_(scale)
        bias.copy_(shift)
        y: Tensor = type(call.norm).forward(call.norm, call.x)
        return y


def _normalized(norm: nn.Module, x: Tensor) -> Tensor:
    """The output of a norm before scale, shift and activation."""
    if isinstance(norm, GroupNorm):
        return group_norm(x, norm.num_groups, None, None, norm.eps)
    assert isinstance(norm, SampleNorm)
    return norm.normalize(upcast(x))


def _unactivated(norm: Any, x: Tensor, known: Facts) -> Tensor:
    """The output of a norm of another library before its activation, in evaluation."""
    if known.spec == "gn":
        return F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
    of_batch = norm.running_mean is None
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, of_batch, 0.0, norm.eps)


def _linears(converted: nn.Module, original: nn.Module) -> dict[str, tuple[nn.Linear, nn.Linear]]:
    """The plain linear layers of both, by path."""
    olds = dict(original.named_modules())
    return {
        path: (new, old)
        for path, new in converted.named_modules()
        if type(new) is nn.Linear and type(old := olds.get(path)) is nn.Linear and not parametrize.is_parametrized(new)
    }


def _count(
    fits: dict[str, LinearFit],
    linears: dict[str, tuple[nn.Linear, nn.Linear]],
    converted: nn.Module,
    original: nn.Module,
    inputs: Any,
) -> None:
    """Let the fits of linear layers count a batch."""
    outputs: dict[str, list[Tensor]] = {path: [] for path in linears}
    hooks = [
        old.register_forward_hook(lambda module, x, y, path=path: outputs[path].append(y.clone()))
        for path, (_, old) in linears.items()
    ]
    hooks += [
        new.register_forward_hook(lambda module, x, y, path=path: fits[path].add(x[0], y, outputs[path].pop(0)))
        for path, (new, _) in linears.items()
    ]
    try:
        run(original, inputs)
        run(converted, inputs)
    finally:
        for hook in hooks:
            hook.remove()
