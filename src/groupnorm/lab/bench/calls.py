"""What a call costs by itself, without any work: it explains the smallest cases, where that is most of the time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from groupnorm.functional import group_norm
from groupnorm.lab.bench.cases import Case, Shape
from groupnorm.lab.bench.contenders import OURS, TORCH, Norm, eager, ours
from groupnorm.lab.bench.machine import watching_others
from groupnorm.lab.bench.measure import BOTH, FORWARD
from groupnorm.lab.bench.tensors import Tensors, tensors
from groupnorm.lab.bench.timing import Run, Runs, figures, rounds, wall_clock, warm_up
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

_BETWEEN = 1 << 21  # bytes that are copied before each call, as the rest of a network would: more than most L2 hold

Entry = dict[str, Any]


def measure(seconds: float) -> Entry:
    """``timings`` by phase, on a CPU, of those in :data:`TITLES`.

    Args:
        seconds: of timing, for both phases together.
    """
    given, timings = tensors(SMALLEST, "cpu"), {}
    source = torch.ones(_BETWEEN, dtype=torch.int8)
    buffer = torch.empty_like(source)
    norms: dict[str, Norm] = {
        TORCH: eager(SMALLEST),
        OURS: ours(SMALLEST),
        EMPTY: lambda x, weight, bias: cast(Tensor, _Nothing.apply(x, weight, bias)),
    }
    if not cpu.unavailable():
        norms[KERNEL] = lambda x, weight, bias: group_norm(x, SMALLEST.shape.groups, weight, bias, backend="cpu")

    def ready(run: Run) -> Callable[[], Run]:
        return lambda: (buffer.copy_(source), run)[1]

    for phase in (FORWARD, BOTH):
        runs: Runs = {name: ready(partial(_step, norm, given, phase == BOTH)) for name, norm in norms.items()}
        with torch.set_grad_enabled(phase == BOTH):
            warm_up(runs, wall_clock, seconds / 4)
            with watching_others() as quiet:
                times = rounds(runs, wall_clock, seconds / 2)
        timings[phase] = figures(times, OURS) | quiet
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
