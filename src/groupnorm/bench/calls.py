"""What a call costs by itself, without any work: it explains the smallest cases, where that is most of the time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any, cast

import torch
from torch import Tensor

from groupnorm.bench.cases import Case, Shape
from groupnorm.bench.contenders import OURS, TORCH, Norm, eager, ours
from groupnorm.bench.measure import BOTH, FORWARD
from groupnorm.bench.tensors import Tensors, tensors
from groupnorm.bench.timing import Run, Runs, timed, wall_clock
from groupnorm.functional import group_norm
from groupnorm.ops import cpu

KERNEL, EMPTY = "cpu", "empty"
TITLES = {
    TORCH: "torch eager",
    OURS: "groupnorm, as it chooses: ATen's",
    KERNEL: 'groupnorm, `backend="cpu"`',
    EMPTY: "a `torch.autograd.Function` that does nothing",
}
"""Who takes part, in the order of tables; the kernels where there are some."""

SMALLEST = Case(Shape((2, 8, 2, 2), 4), "fp32", "contiguous", "none")
"""So little work that only the call is seen."""

COLD = ", after a copy"
"""Added to a phase where the rest of a network is played by a copy before each call, of more than most L2 hold."""

_COPIED = 1 << 21  # bytes

Entry = dict[str, Any]


def measure(seconds: float) -> Entry:
    """``timings`` by phase, on a CPU, of those in :data:`TITLES`: at once again, as the timed cases are, and cold.

    Args:
        seconds: of timing, for all of it.
    """
    given, timings = tensors(SMALLEST, "cpu"), {}
    source = torch.ones(_COPIED, dtype=torch.int8)
    buffer = torch.empty_like(source)
    norms: dict[str, Norm] = {
        TORCH: eager(SMALLEST),
        OURS: ours(SMALLEST),
        EMPTY: lambda x, weight, bias: cast(Tensor, _Nothing.apply(x, weight, bias)),
    }
    if not cpu.unavailable():
        norms[KERNEL] = lambda x, weight, bias: group_norm(x, SMALLEST.shape.groups, weight, bias, backend="cpu")

    def ready(run: Run, between: str) -> Callable[[], Run]:
        return lambda: (buffer.copy_(source) if between else None, run)[1]

    for phase, between in product((FORWARD, BOTH), ("", COLD)):
        steps = {name: partial(_step, norm, given, phase == BOTH) for name, norm in norms.items()}
        runs: Runs = {name: ready(step, between) for name, step in steps.items()}
        with torch.set_grad_enabled(phase == BOTH):
            timings[phase + between] = timed(runs, wall_clock, seconds / 4, OURS)
    return {"timings": timings}


class _Nothing(torch.autograd.Function):
    """What every differentiable function written in Python costs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        _, weight, bias = ctx.saved_tensors
        return dy, weight, bias


def _step(norm: Norm, given: Tensors, trains: bool) -> object:
    y = norm(*given[:3])
    return torch.autograd.grad(y, given[:3], given.dy) if trains else y
