"""What the kernels of a CPU cost where memory is not in the way: of a call, and of an element that lies in the L2."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch

from groupnorm.bench.cases import GRID_ACTIVATIONS, GRID_DTYPES, LAYOUTS, Case, Shape, grid
from groupnorm.bench.measure import BOTH, FORWARD
from groupnorm.bench.tensors import tensors
from groupnorm.bench.timing import Run, timed, wall_clock
from groupnorm.functional import group_norm

SMALL, LARGE = "small", "large"
_SHAPES = {SMALL: Shape((2, 64, 16, 16), 32), LARGE: Shape((2, 64, 32, 32), 32)}
"""Both take all threads, and all tensors of a training step of the larger one, in fp32, are 2 MB."""

KINDS = [case.kind for case in grid([_SHAPES[SMALL]], GRID_DTYPES, LAYOUTS, GRID_ACTIVATIONS)]

Entry = dict[str, Any]


class Rate(NamedTuple):
    """Of the kernels in one dtype, layout and activation.

    Attributes:
        call: seconds of a call, and of the threads that it wakes.
        element: seconds of an element, of all threads together.
    """

    call: float
    element: float


def measure(kind: str, seconds: float) -> Entry:
    """``timings`` by phase of the kernels, on two sizes.

    Args:
        kind: of :data:`KINDS`.
        seconds: of timing, for both phases together.
    """
    timings = {}
    for phase in (FORWARD, BOTH):
        runs = {size: _ready(Case(shape, *kind.split()), phase) for size, shape in _SHAPES.items()}
        with torch.set_grad_enabled(phase == BOTH):
            timings[phase] = timed(runs, wall_clock, seconds / 2, LARGE)
    return {"timings": timings}


def rate(entry: Entry, phase: str) -> Rate:
    """The line through the two sizes."""
    small, large = (_SHAPES[size].elements for size in (SMALL, LARGE))
    seconds = {size: found[1] for size, found in entry["timings"][phase]["seconds"].items()}
    element = (seconds[LARGE] - seconds[SMALL]) / (large - small)
    return Rate(seconds[SMALL] - element * small, element)


def _ready(case: Case, phase: str) -> Callable[[], Run]:
    given = tensors(case, "cpu")
    inputs, out = given[:3], torch.empty_like(given.x).detach()
    norm = partial(group_norm, num_groups=case.shape.groups, activation=case.function, backend="cpu")

    def forward() -> object:
        x, weight, bias = inputs
        return norm(x, weight=weight, bias=bias, out=out)

    def both() -> object:
        x, weight, bias = inputs
        return torch.autograd.grad(norm(x, weight=weight, bias=bias), inputs, given.dy)

    return lambda: forward if phase == FORWARD else both
