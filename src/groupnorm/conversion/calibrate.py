"""Fit the norms of a converted model to those it was converted from, on real inputs and without labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from groupnorm.conversion.fitting import Fitting, Targets, check_finite, check_same, reason_not_seen
from groupnorm.conversion.least_squares import ChannelFit, LinearFit
from groupnorm.conversion.population import BATCH_NORMS
from groupnorm.conversion.probe import (
    check_batches,
    device_of,
    evaluating,
    first_tensor,
    run_batch,
)
from groupnorm.conversion.rules import Facts, facts
from groupnorm.errors import ArgumentError, ConversionError
from groupnorm.nn.base import SampleNorm
from groupnorm.nn.group_norm import GroupNorm
from groupnorm.tables import count_of, html_table

_NOT_REACHED = "no call of it in one network has a call in the other: the data do not reach it"

RIDGE = 1e-3
"""Pull of a linear layer to its weights, relative to the mean square of its inputs."""


@dataclass(repr=False)
class Calibration:
    """What :func:`calibrate_` did.

    Attributes:
        unexplained: for each norm, by path, the share of the variance of the original's output, over all channels, that
            the best scale and shift leave. It is that of the inputs which the norm had in the last pass, while the
            norms before it were still being fitted, and before the linear layers were: a sign of how well the new norm
            can follow the old one there, and not the error of the finished model. For ``"PATH in a sum"`` it is the
            variance of what the norm was to give to the sum; its scale and shift are those of that fit.
        left: norms, and linear layers, that could not be fitted, by path, and why.
    """

    unexplained: dict[str, float] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    _before: list[tuple[Tensor, Tensor]] = field(default_factory=list, repr=False)

    @property
    def _rows(self) -> list[tuple[str, str]]:
        fitted = [(path, f"{100 * share:.1f} % unexplained") for path, share in self.unexplained.items()]
        return fitted + [(path, f"left as it is: {why}") for path, why in self.left.items()]

    @property
    def _title(self) -> str:
        return f"{count_of(len(self.unexplained), 'norm')} fitted, {len(self.left)} left as they are"

    def __repr__(self) -> str:
        width = max((len(path) for path, _ in self._rows), default=0)
        return "\n".join([self._title, *(f"  {path:<{width}}  {text}" for path, text in self._rows)])

    def _repr_html_(self) -> str:
        return html_table(self._title, ("path", "outcome"), self._rows)

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

    Parameters that do not learn (``requires_grad=False``) are fitted too: nothing is learned here. Those that several
    layers share, or that a parametrization computes, are left, since a fit for one layer is none for the other. When
    anything goes wrong, Ctrl-C included, every parameter gets back the value it had.

    Args:
        converted: a model from :func:`groupnorm.convert`, whose norms are group, layer, instance, RMS or filter
            response norms.
        original: the model it came from.
        data: batches of inputs, or of tuples or lists that begin with the inputs, as a data loader gives; a few hundred
            images are enough. Inputs that are a tuple or list are positional arguments of the model, and one within
            another is one argument: ``([image], targets)``. A mapping is its keyword arguments, and goes to the model
            whole, with the labels that may be in it. They are used ``passes``
            times and once more for the linear layers: a data loader or a list is gone through as often, a generator is
            held in memory.
        passes: over the data for the norms. Default: 2.
        linear: fit the linear layers, too. Default: True.
        progress: called after each batch with the number of batches done.

    Returns:
        What is left unexplained of each norm, what was left as it is, and ``undo()``.

    Raises:
        ArgumentError: no data, one batch in place of batches, values that are not finite, ``passes`` below 1, or models
            on two devices.
        ConversionError: the models have no norms at the same paths that differ, cannot run a batch, or choose what a
            layer gets by what they compute, as detectors do with proposals: calibrate the backbone alone there.

    Example::

        >>> converted = groupnorm.convert(model, "gn")
        >>> groupnorm.calibrate_(converted, model, (images for images, labels in loader))
    """
    if passes < 1:
        raise ArgumentError(f"passes={passes}; expected at least 1")
    check_batches(data)
    batches = _repeatable(data)
    if not len(batches):
        raise ArgumentError("data has no batches; expected some inputs of the model, a few hundred images")
    _check_devices(converted, original)
    result = Calibration()
    owners = _owners(converted)
    olds, news = _norms(converted, original, owners, result.left)
    linears = _linears(converted, original, owners, result.left) if linear else {}
    for module in (*news.values(), *(new for new, _ in linears.values())):
        result._before += [(p, p.detach().clone()) for p in module.parameters(recurse=False)]
    fits: dict[str, ChannelFit] = {}
    done = 0
    try:
        with torch.no_grad(), evaluating(converted), evaluating(original):
            for _ in range(passes):
                for fit in fits.values():
                    fit.turn()
                for number, batch in enumerate(batches, start=1):
                    with Targets(olds) as targets:
                        run_batch(original, batch, number, "the original")
                    with Fitting(news, targets, fits, number, number / len(batches)):
                        run_batch(converted, batch, number, "the converted model")
                    progress(done := done + 1)
            if linears:
                changes = {path: LinearFit(new.weight, new.bias, RIDGE) for path, (new, _) in linears.items()}
                for number, batch in enumerate(batches, start=1):
                    _count(changes, linears, converted, original, batch, number)
                    progress(done := done + 1)
                for change in changes.values():
                    change.apply()
                result.left.update((path, _NOT_REACHED) for path, change in changes.items() if not change.counted)
    except BaseException:
        result.undo()
        raise
    result.left.update((path, _NOT_REACHED) for path in news if path not in fits)
    result.unexplained = {name: fit.unexplained() for name, fit in fits.items()}
    return result


def _repeatable(data: Any) -> Any:
    """Batches that can be gone through several times, and counted."""
    return data if hasattr(data, "__len__") and not hasattr(data, "__next__") else list(data)


def _check_devices(converted: nn.Module, original: nn.Module) -> None:
    devices = [device_of(model) for model in (converted, original)]
    if None not in devices and devices[0] != devices[1]:
        raise ArgumentError(
            f"the converted model is on {devices[0]} and the original on {devices[1]}; expected both on one device: "
            f"move one with .to()"
        )


_Owners = dict[int, list[str]]
"""From the id of a parameter to the paths of the modules that have it."""


def _owners(model: nn.Module) -> _Owners:
    owners: _Owners = {}
    for path, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(path)
    return owners


def _norms(
    converted: nn.Module, original: nn.Module, owners: _Owners, left: dict[str, str]
) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
    """The norms of the original that differ from those of the converted model, and these, by path.

    Args:
        converted: the model to fit.
        original: the model it came from.
        owners: of the parameters of the model to fit.
        left: gets the norms that cannot be fitted, and why.
    """
    all_olds = dict(original.named_modules())
    olds: dict[str, nn.Module] = {}
    news: dict[str, nn.Module] = {}
    for path, new in converted.named_modules():
        old = all_olds.get(path)
        if old is None:
            continue
        try:
            new_facts, old_facts = facts(new), facts(old)
        except ArgumentError as error:  # no rule knows one of them
            left[path] = str(error).partition(";")[0]
            continue
        if new_facts is None or old_facts is None:
            continue
        if type(old) is type(new) and old.extra_repr() == new.extra_repr():  # with other groups it is another norm
            continue
        reason = _reason_left(path, new, new_facts, owners) or reason_not_seen(old_facts, new_facts)
        if reason:
            left[path] = reason
        else:
            olds[path], news[path] = old, new
    if not news:
        some = f", but {dict(list(left.items())[:3])}{' and more' if len(left) > 3 else ''}" if left else ""
        raise ConversionError(
            f"no norms to fit{some}; expected a model and what groupnorm.convert() made of "
            f"it, a copy with group, layer, instance, RMS or filter response norms"
        )
    return olds, news


def _reason_left(path: str, norm: nn.Module, known: Facts, owners: _Owners) -> str:
    """Why a norm cannot be fitted; "" where it can."""
    kind = type(norm).__name__
    if known.spec in BATCH_NORMS:
        return f"{kind} has statistics of batches: recompute those instead"
    if known.spec == "frozen":
        return f"{kind} has statistics of an earlier training, which stay"
    if not isinstance(norm, (GroupNorm, SampleNorm)):
        return f"{kind} is no norm of groupnorm with statistics of the sample alone: only those are fitted"
    if norm.weight is None or norm.bias is None:
        return f"{kind} has no scale and shift to fit"
    return _reason_fixed(path, norm, owners)


def _reason_fixed(path: str, layer: nn.Module, owners: _Owners) -> str:
    """Why weight and bias of a layer cannot be set for it alone; "" where they can."""
    for name in ("weight", "bias"):
        tensor = getattr(layer, name)
        if tensor is None:
            continue
        if layer._parameters.get(name) is None:
            return f"its {name} is computed, as by a parametrization, and cannot be set: remove that before"
        others = [other or "the model" for other in owners[id(tensor)] if other != path]
        if others:
            return f"its {name} is that of {', '.join(others)} too, and a fit for one is none for the other"
    return ""


def _linears(
    converted: nn.Module, original: nn.Module, owners: _Owners, left: dict[str, str]
) -> dict[str, tuple[nn.Linear, nn.Linear]]:
    """The plain linear layers of both, by path; ``left`` gets those that cannot be fitted, and why."""
    olds = dict(original.named_modules())
    found = {}
    for path, new in converted.named_modules():
        old = olds.get(path)
        if old is None or not (_is_linear(new) and _is_linear(old)):
            continue
        reason = _reason_fixed(path, new, owners)
        if reason:
            left[path] = reason
        else:
            found[path] = (new, old)
    return found


def _is_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a module is one of ``nn.Linear`` itself; attention has a subclass, whose forward is not called."""
    kind = type(module).__mro__[1] if parametrize.is_parametrized(module) else type(module)
    return kind is nn.Linear


def _count(
    fits: dict[str, LinearFit],
    linears: dict[str, tuple[nn.Linear, nn.Linear]],
    converted: nn.Module,
    original: nn.Module,
    batch: Any,
    number: int,
) -> None:
    """Let the fits of linear layers count a batch, the ``number``-th.

    Calls of a layer are matched in their order; those that only one of both networks makes do not count.
    """
    outputs: dict[str, list[Tensor]] = {path: [] for path in linears}

    def add(path: str, x: Tensor | None, y: Tensor) -> None:
        assert x is not None
        if outputs[path]:
            target = outputs[path].pop(0)
            check_same(f"linear layer {path!r}", number, y, target)
            check_finite(f"linear layer {path!r}", number, x, y, target)
            fits[path].add(x, y, target)

    hooks = [
        old.register_forward_hook(lambda layer, x, y, path=path: outputs[path].append(y.clone()))
        for path, (_, old) in linears.items()
    ]
    hooks += [
        new.register_forward_hook(
            lambda layer, x, options, y, path=path: add(path, first_tensor(x, options), y), with_kwargs=True
        )
        for path, (new, _) in linears.items()
    ]
    try:
        run_batch(original, batch, number, "the original")
        run_batch(converted, batch, number, "the converted model")
    finally:
        for hook in hooks:
            hook.remove()
