"""The error of a norm against float64, looked at before any timing: a fast wrong kernel is worth nothing.

Groups are independent, so of a large input some whole groups are enough: the memory stays small. The error of a
tensor is its largest deviation over the largest magnitude of what is right, in units of the dtype's eps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from groupnorm.bench.cases import Case
from groupnorm.bench.contenders import Norm
from groupnorm.bench.tensors import Tensors
from groupnorm.ops.activation import activate
from groupnorm.ops.reference import normalize
from groupnorm.sets import group_set

ROUNDINGS = 8
"""An error of so many eps of the dtype is a few roundings, and right, whatever torch's is."""

PEER_ROUNDINGS = 64
"""Of a peer: it is timed while it computes the same thing, though less exactly."""

_ENOUGH = 1 << 24  # elements to compare
_FEWEST = 3  # groups: the first, the last and one between
_KINK = 1e-3  # so near to zero a ReLU may go either way

Errors = dict[str, float | None]
"""By tensor: "y", "dx", "dweight", "dbias"; None for one that is not finite where it should be."""


class Right(NamedTuple):
    """What is right for the channels of one group, in all samples, in float64.

    Attributes:
        channels: of the group.
        values: by the name of the tensor.
    """

    channels: slice
    values: dict[str, Tensor]


def right(case: Case, given: Tensors) -> list[Right]:
    """The definition in float64, for all groups or for some whole ones.

    Where the input of a ReLU is so near to zero that it may go either way, ``given.dy`` becomes 0, so that nothing
    depends on which way it goes: one such element is seen in the sum over its channel.
    """
    size, groups = case.shape.size, case.shape.groups
    width, elements = size[1] // groups, math.prod(size) // groups
    count = min(groups, max(_FEWEST, _ENOUGH // elements))
    chosen = sorted({round(i * (groups - 1) / max(count - 1, 1)) for i in range(count)})
    return [_right(case, given, slice(group * width, (group + 1) * width)) for group in chosen]


def _right(case: Case, given: Tensors, channels: slice) -> Right:
    x, weight, bias = (
        part.detach().double().requires_grad_(case.trains)
        for part in (given.x[:, channels], given.weight[channels], given.bias[channels])
    )
    z = normalize(x, group_set(1), weight, bias)
    y = activate(z, case.function)
    values = {"y": y.detach()}
    if case.trains:
        dy = given.dy[:, channels]
        if case.activation == "relu":
            dy.masked_fill_(z.detach().abs() <= _KINK, 0)
        found = torch.autograd.grad(y, (x, weight, bias), dy.double())
        values |= zip(("dx", "dweight", "dbias"), found, strict=True)
    return Right(channels, values)


def errors(case: Case, norm: Norm, given: Tensors, expected: list[Right]) -> Errors:
    """The errors of a norm, in units of eps of the dtype."""
    found = outputs(case, norm, given)
    worst: Errors = {}
    for name, tensor in found.items():
        each = [_error(name, tensor, part) for part in expected]
        finite = _is_finite(tensor) and all(map(math.isfinite, each))
        worst[name] = max(each) / torch.finfo(case.torch_dtype).eps if finite else None
    return worst


def outputs(case: Case, norm: Norm, given: Tensors) -> dict[str, Tensor]:
    """What a norm computes, by name."""
    if not case.trains:
        with torch.no_grad():
            return {"y": norm(given.x, given.weight, given.bias)}
    y = norm(given.x, given.weight, given.bias)
    dx, dweight, dbias = torch.autograd.grad(y, (given.x, given.weight, given.bias), given.dy)
    return {"y": y.detach(), "dx": dx, "dweight": dweight, "dbias": dbias}


def refusal(found: Errors, torchs: Errors, roundings: float = ROUNDINGS) -> str:
    """What is wrong; "" where each error is no larger than torch's, or a few roundings.

    Args:
        found: of the norm in question.
        torchs: of torch eager.
        roundings: how many are allowed in any case.
    """
    wrong = []
    for name, error in found.items():
        measure = torchs.get(name)
        allowed = math.inf if measure is None else max(measure, roundings)
        if (math.inf if error is None else error) > allowed:
            wrong.append(f"{name} is off by {_eps(error)}, torch's by {_eps(measure)}")
    return "; ".join(wrong)


def worst(found: Mapping[str, float | None]) -> float | None:
    """The largest of several errors."""
    values = [math.inf if error is None else error for error in found.values()]
    return None if math.inf in values else max(values)


def _is_finite(tensor: Tensor) -> bool:
    """Whether every number is; a sum needs no memory, and only fp16 overflows in its own dtype."""
    return math.isfinite(tensor.sum(dtype=torch.float32 if tensor.dtype == torch.float16 else None))


def _eps(error: float | None) -> str:
    return "what is not finite" if error is None else f"{error:.3g} eps"


def _error(name: str, tensor: Tensor, part: Right) -> float:
    of_channels = name in ("dweight", "dbias")
    expected = part.values[name]
    got = (tensor[part.channels] if of_channels else tensor[:, part.channels]).double()
    least = 0.0 if name == "dx" else 1.0  # all are around 1 but dx, and the scale's gradient of a constant input is 0
    scale = max(expected.abs().max().item(), least)
    return (got - expected).abs_().max().item() / (scale or 1.0)
