"""The backward pass of each route, as launches."""

from __future__ import annotations

import torch
from torch import Tensor

from groupnorm.ops.spec import CHANNELS_LAST, Spec
from groupnorm.ops.triton import backward_blocks, looped, plan, resident
from groupnorm.ops.triton.launch import blank, counters, dense, launch, pair

Inputs = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor, Tensor]  # dy, x, weight, bias, mean, rstd
Parameters = tuple[Tensor | None, Tensor | None]  # dweight, dbias
Pair = tuple[Tensor, Tensor]  # sums of d or g, and of that times xhat
NOTHING = (None, None)


def backward(
    spec: Spec,
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    *,
    fixed: bool = False,
    needs: tuple[bool, bool, bool] = (True, True, True),
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """The protocol of :mod:`groupnorm.ops.backends`."""
    dx = torch.empty_like(x) if needs[0] else None
    dweight, dbias = (blank(spec, x, spec.channels) if wanted else None for wanted in needs[1:])
    sums = blank(spec, x, 2, spec.samples, spec.groups) if fixed else None
    if fixed or any(needs):
        route = plan.route(spec)
        if (fixed or dx is None) and route != plan.RESIDENT:
            route = plan.SPLIT  # one pass is enough
        inputs = dy, x, dense(weight), dense(bias), mean, rstd
        pooled = None if sums is None else (sums[0], sums[1])
        ROUTES[route](spec, inputs, dx, (dweight, dbias), pooled)
    return dx, dweight, dbias, sums


def in_registers(spec: Spec, inputs: Inputs, dx: Tensor | None, parameters: Parameters, pooled: Pair | None) -> None:
    """Groups in the registers of one program."""
    cut = plan.resident(spec)
    assert cut is not None
    partial = pair(spec, inputs[1], cut.lines, spec.channels) if any_of(parameters) else None
    launch(
        resident.backward_kernel, cut.programs, cut.warps,
        *inputs, dx, *(partial or NOTHING), *(pooled or NOTHING),
        spec.samples, cut.geometry, cut.groups, cut.members, cut.tile, cut.of_samples, spec.layout == CHANNELS_LAST,
        cut.vector, spec.activation,
    )  # fmt: skip
    sum_up(spec, cut.geometry, partial, parameters)


def group_by_group(spec: Spec, inputs: Inputs, dx: Tensor | None, parameters: Parameters, _: Pair | None) -> None:
    """A program goes over its group twice."""
    cut = plan.looped(spec)
    at = cut.geometry
    partial = pair(spec, inputs[1], at.chunks, at.rows) if any_of(parameters) else None
    launch(
        looped.backward_kernel, cut.spans, cut.warps,
        *inputs, dx, *(partial or NOTHING), at, cut.slab, cut.tile, spec.activation, cut.stages,
    )  # fmt: skip
    sum_up(spec, at, partial, parameters)


def streamed(spec: Spec, inputs: Inputs, dx: Tensor | None, parameters: Parameters, _: Pair | None) -> None:
    """Blocks of a group are applied soon after the last was measured."""
    cut, x = plan.streamed(spec), inputs[1]
    at = cut.geometry
    partial = pair(spec, x, at.chunks, at.rows)
    launch(
        backward_blocks.streamed_kernel, cut.blocks + cut.lead, cut.warps,
        *inputs, dx, *partial, *pair(spec, x, spec.samples, spec.groups),
        counters(x, cut.spans), cut.blocks, cut.lead, at, cut.slab, cut.tile, spec.activation, plan.LANES,
        registers=cut.registers,
    )  # fmt: skip
    sum_up(spec, at, partial, parameters)


def block_by_block(spec: Spec, inputs: Inputs, dx: Tensor | None, parameters: Parameters, pooled: Pair | None) -> None:
    """Measure, settle and apply; the first is all where the statistics are constants, or dx is not wanted."""
    cut, last, x = plan.split(spec), spec.layout == CHANNELS_LAST, inputs[1]
    at = cut.geometry
    partial = pair(spec, x, at.chunks, at.rows)
    twice = dx is not None and pooled is None
    if twice:
        pooled = pair(spec, x, spec.samples, spec.groups)
    arguments = at, cut.slab, cut.tile, last, spec.activation
    launch(backward_blocks.measure_kernel, cut.blocks, cut.warps, *inputs, None if twice else dx, *partial, *arguments)
    sum_up(spec, at, partial, parameters, inputs[2], pooled)
    if twice:
        launch(backward_blocks.apply_kernel, cut.blocks, cut.warps, *inputs, *(pooled or NOTHING), dx, *arguments)


def sum_up(
    spec: Spec,
    at: plan.Geometry,
    partial: Pair | None,
    parameters: Parameters,
    weight: Tensor | None = None,
    pooled: Pair | None = None,
) -> None:
    """Fill the gradients of the parameters and the sums of the groups, each where it is given, from ``partial``."""
    groups = 0 if pooled is None else spec.samples * spec.groups
    columns = -(-spec.channels // plan.COLUMNS) if any_of(parameters) else 0
    if partial is not None:
        launch(
            backward_blocks.sum_kernel, groups + columns, 4,
            *partial, *(pooled or partial), weight, *parameters,
            groups, partial[0].numel() // spec.channels, at, plan.LINES, plan.COLUMNS,
        )  # fmt: skip


def any_of(parameters: Parameters) -> bool:
    """Whether any of them is wanted."""
    return any(parameter is not None for parameter in parameters)


ROUTES = {
    plan.RESIDENT: in_registers,
    plan.LOOPED: group_by_group,
    plan.STREAMED: streamed,
    plan.SPLIT: block_by_block,
}
