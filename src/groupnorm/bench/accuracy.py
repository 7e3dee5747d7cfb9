"""What is promised besides speed: errors on hostile input, and what is kept for the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import Tensor

from groupnorm.bench.cases import DTYPES, LAYOUTS, Case, Shape
from groupnorm.bench.check import errors, refusal, right
from groupnorm.bench.contenders import OURS, TORCH, Norm, eager, ours
from groupnorm.bench.tensors import HOSTILE, Tensors, tensors
from groupnorm.functional import group_norm

SMOOTH = ("none", "silu")
"""Activations under which hostile input is compared: at the kink of a ReLU a gradient may go either way."""

# Small and large, since both go to the kernels.
_SHAPES = (
    Shape((2, 48, 9, 7), 16),
    Shape((3, 16, 4, 4), 4),
    Shape((2, 64, 40, 40), 8),
    Shape((2, 8, 3, 4, 5), 2),
    Shape((1, 32, 12, 20, 28), 4),
)
_KEPT = Case(Shape((2, 320, 32, 32), 32), "bf16", "contiguous", "silu")

Entry = dict[str, Any]


def hostile(device: str) -> dict[str, Entry]:
    """Errors of ours and torch's on each kind of hostile input, by its name and a case; ``reason`` is what is wrong."""
    cases = [Case(*parts) for parts in product(_SHAPES, DTYPES, LAYOUTS, SMOOTH)]
    return {f"{kind}: {case.key}": _compared(case, device, fill) for kind, fill in HOSTILE.items() for case in cases}


def kept(device: str) -> Entry:
    """Tensors of the input's size that a norm with SiLU keeps for its backward pass, and its dtype under autocast."""
    given = tensors(_KEPT, device)
    wide = given._replace(weight=given.weight.detach().float(), bias=given.bias.detach().float())
    with torch.autocast(device, torch.bfloat16):
        y = group_norm(given.x, _KEPT.shape.groups, wide.weight, wide.bias, activation=_KEPT.function)
    norms = {OURS: ours(_KEPT), TORCH: eager(_KEPT)}
    return {
        "tensors": {name: kept_bytes(norm, given) / _KEPT.nbytes for name, norm in norms.items()},
        "autocast": str(y.dtype).removeprefix("torch."),
    }


def kept_bytes(norm: Norm, given: Tensors) -> int:
    """Bytes that autograd holds for the backward pass, the input's among them; parameters and statistics are not it."""
    found: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if t.numel() >= given.x.numel():
            found[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        norm(given.x, given.weight, given.bias)
    return sum(found.values())


def _compared(case: Case, device: str, fill: Callable[[Tensor, int], Tensor]) -> Entry:
    """Beside torch's errors on the contiguous input: its channels-last kernel cancels, which would excuse anything."""
    given = tensors(case, device, fill)
    expected = right(case, given)
    torchs = eager(case)
    found = {
        TORCH: errors(case, lambda x, w, b: torchs(x.contiguous(), w, b), given, expected),
        OURS: errors(case, ours(case), given, expected),
    }
    return {"errors": found, "reason": refusal(found[OURS], found[TORCH])}
