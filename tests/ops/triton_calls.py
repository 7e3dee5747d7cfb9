"""Calls of the Triton backend: on guarded memory, along a route of choice, compared with the definition."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import triton
import triton.language as tl
from torch import Tensor

from agreement import Case, Outcome
from groupnorm.ops.spec import CHANNELS_LAST, CONTIGUOUS, Spec, arranged
from groupnorm.ops.triton import INTERPRETED, backward, forward, plan

DEVICE = "cpu" if INTERPRETED else "cuda"
ROUTES = [
    (plan.RESIDENT, CONTIGUOUS),
    (plan.RESIDENT, CHANNELS_LAST),
    (plan.LOOPED, CONTIGUOUS),
    (plan.STREAMED, CONTIGUOUS),
    (plan.SPLIT, CONTIGUOUS),
    (plan.SPLIT, CHANNELS_LAST),
]


def small(dtype: torch.dtype, elements: int = 8) -> dict[str, int]:
    """Sizes at which small tensors are cut as large ones are: into several tiles, chunks, slabs and waves."""
    few = {"BLOCKS": 8, "CHUNKS": 3, "LEAD": 2, "SMALL": 64, "SHORT": 0, "LANES": 4, "LINES": 2, "COLUMNS": 4}
    tile = elements * dtype.itemsize
    return few | {"TILE": tile, "LOOPED_TILE": 2 * tile, "LINE": 4 * dtype.itemsize}


if INTERPRETED and isinstance(tl.sum, triton.JITFunction):
    raise RuntimeError("triton was imported before TRITON_INTERPRET was set: set it at the top of tests/conftest.py")


@contextmanager
def forced(route: str | None = None, **sizes: int) -> Iterator[None]:
    """Within, calls take this route, with other sizes for those of the device in :mod:`groupnorm.ops.triton.plan`."""
    cached = (plan.route, plan.resident, plan.looped, plan.streamed, plan.split)
    kept = {name: getattr(plan, name) for name in ("route", *sizes)}
    for function in cached:
        function.cache_clear()
    for name, size in sizes.items():
        setattr(plan, name, size)
    if route is not None:
        plan.route = lambda spec: route
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(plan, name, value)
        for function in cached:
            function.cache_clear()


def spec_of(x: Tensor, groups: int, activation: str | None = None) -> Spec:
    """The facts of a call; the layout is contiguous where it is both."""
    layout = CONTIGUOUS if x.is_contiguous() else CHANNELS_LAST
    return Spec(DEVICE, x.dtype, tuple(x.shape), layout, groups, activation, True)


def laid_out(case: Case, layout: str) -> Case:
    """The case with input and upstream gradient in a layout, where their rank has it."""
    if layout == CHANNELS_LAST and case.x.dim() not in (4, 5):
        return case
    return Case(arranged(case.x, layout), case.weight, case.bias, arranged(case.upstream, layout))


def guarded(x: Tensor) -> tuple[Tensor, Callable[[], bool]]:
    """``x`` on the device, between NaNs; and whether they are still there."""
    margin = 64
    flat = torch.full((x.numel() + 2 * margin,), torch.nan, dtype=x.dtype, device=DEVICE)
    inner = flat[margin : margin + x.numel()].as_strided(x.shape, x.stride()).copy_(x)
    return inner, lambda: bool(flat[:margin].isnan().all() and flat[x.numel() + margin :].isnan().all())


def run_kernels(case: Case, groups: int, activation: str | None = None, eps: float = 1e-5) -> Outcome:
    """Output and gradients; what is read or written beside the tensors is found."""
    (x, x_intact), (dy, _), (y, y_intact) = (guarded(t) for t in (case.x, case.upstream, torch.zeros_like(case.x)))
    weight, bias = (None if t is None else t.to(DEVICE) for t in (case.weight, case.bias))
    spec = spec_of(x, groups, activation)
    _, mean, rstd = forward(spec, x, weight, bias, eps, out=y)
    dx, dweight, dbias, sums = backward(
        spec, dy, x, weight, bias, mean, rstd, needs=(True, weight is not None, bias is not None)
    )
    assert x_intact()
    assert y_intact()
    assert sums is None
    assert mean.dtype == rstd.dtype == spec.accumulates
    assert dx.stride() == x.stride()
    of_parameters = (None if t is None else t.to(like.dtype).cpu() for t, like in ((dweight, weight), (dbias, bias)))
    return Outcome(y.cpu(), dx.cpu(), *of_parameters)
