"""The forward pass of each route, as launches."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from groupnorm.ops.spec import CHANNELS_LAST, Spec
from groupnorm.ops.triton import forward_blocks, looped, plan, resident
from groupnorm.ops.triton.launch import counters, dense, launch, pair

Statistics = tuple[Tensor, Tensor]  # mean and rstd, [N, G]
Affine = tuple[Tensor | None, Tensor | None]  # weight and bias, [C]
Source = tuple[Tensor, Tensor | None, Tensor | None]  # x; residual; where their sum goes


def forward(
    spec: Spec,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    residual: Tensor | None = None,
    total: Tensor | None = None,
    statistics: Statistics | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The protocol of :mod:`groupnorm.ops.backends`."""
    y = torch.empty_like(x) if out is None else out
    affine = dense(weight), dense(bias)
    if residual is not None and (same(total, x) or same(total, residual)):
        # a program would write the total where another still reads what it takes its numbers relative to
        x, residual, total = torch.add(x, residual, out=total), None, None
    once = x, residual, None if same(total, y) else total  # where the input is read once, and the sum not needed again
    if statistics is not None:
        apply(spec, once, affine, y, statistics)
        return y, *statistics
    found = pair(spec, x, spec.samples, spec.groups)
    route = plan.route(spec)
    if route == plan.RESIDENT:
        in_registers(spec, once, affine, y, found, eps)
    elif route == plan.LOOPED:
        group_by_group(spec, (x, residual, total), affine, y, found, eps)
    elif route == plan.STREAMED:
        streamed(spec, (x, residual, total), affine, y, found, eps)
    else:
        rest = measure(spec, (x, residual, total), found, eps)
        apply(spec, (x if total is None else total, None, None), affine, y, found, rest)
    return y, *found


def statistics(spec: Spec, x: Tensor, eps: float) -> Statistics:
    """The protocol of :mod:`groupnorm.ops.backends`."""
    found = pair(spec, x, spec.samples, spec.groups)
    if plan.route(spec) == plan.RESIDENT:
        in_registers(spec, (x, None, None), (None, None), None, found, eps)
    else:
        measure(spec, (x, None, None), found, eps)
    return found


def in_registers(spec: Spec, source: Source, affine: Affine, y: Tensor | None, found: Statistics, eps: float) -> None:
    """Groups in the registers of one program."""
    cut = plan.resident(spec)
    assert cut is not None
    launch(
        resident.forward_kernel, cut.programs, cut.warps,
        *source, *affine, y, *found, *halves(eps),
        spec.samples, cut.geometry, cut.groups, cut.members, cut.tile, cut.of_samples, spec.layout == CHANNELS_LAST,
        cut.vector, spec.activation,
    )  # fmt: skip


def group_by_group(spec: Spec, source: Source, affine: Affine, y: Tensor, found: Statistics, eps: float) -> None:
    """A program goes over its group twice."""
    cut = plan.looped(spec)
    launch(
        looped.forward_kernel, cut.spans, cut.warps,
        *source, *affine, y, *found, *halves(eps), cut.geometry, cut.slab, cut.tile, spec.activation, cut.stages,
    )  # fmt: skip


def streamed(spec: Spec, source: Source, affine: Affine, y: Tensor, found: Statistics, eps: float) -> None:
    """Blocks of a group are applied soon after the last was measured."""
    cut, (x, mean) = plan.streamed(spec), (source[0], found[0])
    at = cut.geometry
    launch(
        forward_blocks.streamed_kernel, cut.blocks + cut.lead, cut.warps,
        *source, *affine, y, *pair(spec, x, at.chunks, at.rows), *found, torch.empty_like(mean), *halves(eps),
        counters(x, cut.spans), cut.blocks, cut.lead, at, cut.slab, cut.tile, spec.activation, plan.LANES,
        registers=cut.registers,
    )  # fmt: skip


def measure(spec: Spec, source: Source, found: Statistics, eps: float) -> Tensor:
    """Fill the statistics, block by block; what the rounding of the mean left out."""
    cut, last, (x, _, total) = plan.split(spec), spec.layout == CHANNELS_LAST, source
    at, groups = cut.geometry, spec.samples * spec.groups
    parts, rest = pair(spec, x, at.chunks, at.rows), torch.empty_like(found[0])
    launch(forward_blocks.measure_kernel, cut.blocks, cut.warps, *source, *parts, at, cut.slab, cut.tile, last)
    launch(
        forward_blocks.settle_kernel, groups, 4,
        x if total is None else total, *parts, *found, rest, *halves(eps), at, last, plan.LANES,
    )  # fmt: skip
    return rest


def apply(spec: Spec, source: Source, affine: Affine, y: Tensor, found: Statistics, rest: Tensor | None = None) -> None:
    """Fill y with these statistics, block by block."""
    cut, last = plan.split(spec), spec.layout == CHANNELS_LAST
    launch(
        forward_blocks.apply_kernel, cut.blocks, cut.warps,
        *source, *affine, y, *found, rest, cut.geometry, cut.slab, cut.tile, last, spec.activation,
    )  # fmt: skip


def same(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether two tensors are the same memory."""
    return one is not None and other is not None and one.data_ptr() == other.data_ptr()


def halves(eps: float) -> tuple[float, float]:
    """``eps`` as the float32 that kernels receive, and what its rounding leaves out, which float64 has room for."""
    rounded = ctypes.c_float(eps).value
    return rounded, eps - rounded
