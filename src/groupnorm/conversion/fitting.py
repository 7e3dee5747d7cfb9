"""Two networks side by side: what the norms of one give, and those of the other fitted to it as they are reached."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groupnorm.conversion.least_squares import ChannelFit
from groupnorm.conversion.probe import first_tensor, known_facts
from groupnorm.conversion.rules import Facts
from groupnorm.conversion.watch import Call, Watch
from groupnorm.errors import ArgumentError, ConversionError
from groupnorm.functional import group_norm
from groupnorm.nn.base import SampleNorm, upcast
from groupnorm.nn.group_norm import GroupNorm


class Targets(Watch):
    """The outputs of the original's norms before the activations in them, and the sums they go into.

    Args:
        norms: those of the original, by path.
    """

    def __init__(self, norms: Mapping[str, nn.Module]) -> None:
        super().__init__(norms)
        self.outputs: dict[tuple[str, int], Tensor] = {}
        self.sums: dict[tuple[str, int], Tensor] = {}
        self._received: dict[nn.Module, Tensor] = {}  # what the first child that a norm applies got last

    def __enter__(self) -> Self:
        super().__enter__()
        children = {child for norm in self.norms.values() if (child := _first_applied(norm)) is not None}
        self._hooks += [child.register_forward_pre_hook(self._receive, with_kwargs=True) for child in children]
        return self

    def _receive(self, child: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        x = first_tensor(inputs, options)
        assert x is not None
        self._received[child] = x.clone()  # the child may work in place

    def after(self, call: Call) -> Tensor:
        child = _first_applied(call.norm)
        y = self._received.pop(child, call.y) if child is not None else _unactivated(call)
        self.outputs[call.key] = y.clone()
        return call.y

    def sum(self, call: Call, other: Tensor) -> Tensor | None:
        if not torch.equal(self.outputs[call.key], call.y):  # an activation is between scale and shift, and the sum
            return None
        total = call.y + other
        self.sums[call.key] = total.clone()
        return total


class Fitting(Watch):
    """Fits each norm as it is reached, and once more when its output is added to another branch.

    Args:
        norms: those to fit, by path.
        targets: what the original gave for the same inputs.
        fits: of earlier batches; new ones are added.
        batch: which this is, from 1.
        done: share of the pass that is done with this batch.
    """

    def __init__(
        self, norms: Mapping[str, nn.Module], targets: Targets, fits: dict[str, ChannelFit], batch: int, done: float
    ) -> None:
        super().__init__(norms)
        self.targets, self.fits, self.batch, self.done = targets, fits, batch, done

    def after(self, call: Call) -> Tensor:
        return self._fit(call.path, call, self.targets.outputs.get(call.key))

    def sum(self, call: Call, other: Tensor) -> Tensor | None:
        wanted = self.targets.sums.get(call.key)
        if wanted is None:
            return None
        check_same(f"norm {call.path!r}", self.batch, other, wanted)
        return self._fit(f"{call.path} in a sum", call, wanted - other) + other

    def _fit(self, name: str, call: Call, target: Tensor | None) -> Tensor:
        weight, bias = call.norm.weight, call.norm.bias
        assert isinstance(weight, Tensor) and isinstance(bias, Tensor)  # noqa: PT018
        if target is None:
            return call.y
        check_same(f"norm {call.path!r}", self.batch, call.y, target)
        if name not in self.fits:
            self.fits[name] = ChannelFit(len(weight), weight.device)
        self.fits[name].add(_normalized(call.norm, call.x), target)
        scale, shift = (value.to(weight.dtype) for value in self.fits[name].solve(self.done))
        check_finite(f"norm {call.path!r}", self.batch, scale, shift)
        weight.copy_(scale)
        bias.copy_(shift)
        y: Tensor = type(call.norm).forward(call.norm, call.x)
        return y


def check_same(layer: str, batch: int, mine: Tensor, theirs: Tensor) -> None:
    """Raise where a layer gives other shapes in the two networks."""
    if mine.shape != theirs.shape:
        raise ConversionError(
            f"{layer} gives {tuple(mine.shape)} in the converted model and {tuple(theirs.shape)} in the original for "
            f"batch {batch}; expected the same inputs in both: the network chooses what it gets, as a detector chooses "
            f"proposals: calibrate the part before it alone, calibrate_(converted.backbone, original.backbone, images)"
        )


def check_finite(layer: str, batch: int, *values: Tensor) -> None:
    """Raise where what came of a layer in a batch is not finite."""
    if not all(bool(value.isfinite().all()) for value in values):
        raise ArgumentError(
            f"{layer} meets values that are not finite in batch {batch}; expected finite ones, and nothing is changed: "
            f"look for NaN and inf in that batch, or use float32 where a half precision overflows"
        )


def reason_not_seen(old: Facts, new: Facts) -> str:
    """Why the output of a norm of the original cannot be what the new norm is fitted to; "" where it can."""
    if old.activation == "own" and new.activation == "own":
        return "the original's activation is of its own kind, and what comes before it is not seen"
    if old.activation in (None, "own") or old.after or old.spec in ("gn", "bn", "syncbn"):
        return ""
    return (
        f"the original applies {old.activation} within its forward, and what comes before it is not seen: make it a "
        f"child, and name that in Facts.after"
    )


def _normalized(norm: nn.Module, x: Tensor) -> Tensor:
    """The output of a norm before scale, shift and activation."""
    if isinstance(norm, GroupNorm):
        return group_norm(x, norm.num_groups, None, None, norm.eps)
    assert isinstance(norm, SampleNorm)
    return norm.normalize(upcast(x))


def _first_applied(norm: nn.Module) -> nn.Module | None:
    """The first of the children that a norm applies to its output; None: it has none."""
    known = known_facts(norm)
    assert known is not None
    children = (norm._modules.get(name) for name in known.after)
    return next((child for child in children if child is not None), None)


def _unactivated(call: Call) -> Tensor:
    """The output of a norm before the activation that is a part of its forward.

    One of its own kind stays: the new norm has none in its place.
    """
    known, norm = known_facts(call.norm), call.norm
    assert known is not None
    if known.activation in (None, "own"):
        return call.y
    weight, bias = (getattr(norm, name, None) for name in ("weight", "bias"))
    if known.spec == "gn":
        assert known.number is not None
        return F.group_norm(call.x, known.number, weight, bias, known.eps)
    mean, variance = (norm._buffers.get(name) for name in ("running_mean", "running_var"))
    return F.batch_norm(call.x, mean, variance, weight, bias, mean is None, 0.0, known.eps)
