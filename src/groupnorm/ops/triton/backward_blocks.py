"""The backward pass in three steps over blocks, as three kernels or as one, and the sums for the parameters.

With ``xhat = (x - mean) rstd``, ``z = xhat w + b``, ``d = act'(z) dy`` and ``g = d w``:

    measure     ``sum d`` and ``sum d xhat`` of each channel of each block; dy and x are read
    settle      ``sum g`` and ``sum g xhat`` of each group, from those of its channels and chunks
    apply       ``dx = rstd (g - mean(g) - xhat mean(g xhat))``; dy and x are read again
    parameters  dbias and dweight: those of the channels, summed over all samples and chunks

The activation is recomputed from x: nothing is kept for it. The geometry alone decides the order of all sums.
Where the statistics are constants, ``dx = rstd g`` needs no sums, and the first step stores it.
"""

# mypy: ignore-errors

import triton
import triton.language as tl

from groupnorm.ops.triton.activation import through
from groupnorm.ops.triton.blocks import accumulated, affine, elements, place, slab
from groupnorm.ops.triton.forward_blocks import measured
from groupnorm.ops.triton.order import arrive, take_ticket, wait


@triton.jit
def terms(dy, x, first, offsets, here, centre, scale, shift, ACTIVATION: tl.constexpr):
    """``d`` and ``x - mean`` of a tile, 0 where masked out; ``z = (x - mean) scale + shift``."""
    d = accumulated(tl.load(dy + first + offsets, mask=here, other=0))
    off = accumulated(tl.load(x + first + offsets, mask=here, other=0)) - centre
    return tl.where(here, through(off * scale + shift, d, ACTIVATION), 0), tl.where(here, off, 0)


@triton.jit
def measure(
    block, dy, x, weight, bias, mean, rstd, dx, plain, centred, at,
    SLAB: tl.constexpr, TILE: tl.constexpr, CHANNELS_LAST: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Store the sums of the channels of a block, each at ``[chunk, row]``; and ``dx = rstd g``, where it is given."""
    span, channel, chunk, first = place(block, at, SLAB, CHANNELS_LAST)
    inside, channels, group = slab(span, channel, at, SLAB)
    centre = tl.load(mean + group, mask=inside, other=0)
    factor = tl.load(rstd + group, mask=inside, other=0)
    w, b = affine(weight, bias, channels, inside, factor)
    scale = (w * factor)[:, None]
    offsets, step = elements(at, SLAB, TILE, CHANNELS_LAST)
    left = tl.minimum(at.positions - chunk * at.chunk, at.chunk)
    sums = tl.zeros([SLAB, TILE], factor.dtype)
    products = tl.zeros([SLAB, TILE], factor.dtype)
    for i in range(tl.cdiv(left, TILE)):
        to = offsets + i * step
        here = inside[:, None] & (tl.arange(0, TILE)[None, :] + i * TILE < left)
        d, off = terms(dy, x, first, to, here, centre[:, None], scale, b[:, None], ACTIVATION)
        if dx is not None:
            tl.store(dx + first + to, d * scale, mask=here)
        sums += d
        products += d * off
    to = chunk.to(tl.int64) * at.rows + (span * at.width + channel + tl.arange(0, SLAB))
    tl.store(plain + to, tl.sum(sums, axis=1), mask=inside)
    tl.store(centred + to, tl.sum(products, axis=1) * factor, mask=inside)


@triton.jit
def settle(group, weight, plain, centred, pooled, pooled_centred, at, LANES: tl.constexpr):
    """Store ``sum g`` and ``sum g xhat`` of a group."""
    first = group % (at.channels // at.members) * at.members
    sums = tl.zeros([LANES], pooled.dtype.element_ty)
    products = tl.zeros([LANES], pooled.dtype.element_ty)
    for i in range(0, at.members * at.chunks, LANES):
        part = i + tl.arange(0, LANES)
        to, _, here = measured(part, group, at)
        w, _ = affine(weight, None, first + part % at.members, here, sums)
        sums += w * tl.load(plain + to, mask=here, other=0, cache_modifier=".cg")
        products += w * tl.load(centred + to, mask=here, other=0, cache_modifier=".cg")
    tl.store(pooled + group, tl.sum(sums, axis=0))
    tl.store(pooled_centred + group, tl.sum(products, axis=0))


@triton.jit
def apply(
    block, dy, x, weight, bias, mean, rstd, pooled, pooled_centred, dx, at,
    SLAB: tl.constexpr, TILE: tl.constexpr, CHANNELS_LAST: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Store dx over a block."""
    span, channel, chunk, first = place(block, at, SLAB, CHANNELS_LAST)
    inside, channels, group = slab(span, channel, at, SLAB)
    centre = tl.load(mean + group, mask=inside, other=0)
    factor = tl.load(rstd + group, mask=inside, other=0)
    w, b = affine(weight, bias, channels, inside, factor)
    scale = (w * factor)[:, None]
    per_element = factor / (tl.cast(at.members, factor.dtype) * tl.cast(at.positions, factor.dtype))
    constant = tl.load(pooled + group, mask=inside, other=0, cache_modifier=".cg") * per_element
    slope = tl.load(pooled_centred + group, mask=inside, other=0, cache_modifier=".cg") * (per_element * factor)
    offsets, step = elements(at, SLAB, TILE, CHANNELS_LAST)
    left = tl.minimum(at.positions - chunk * at.chunk, at.chunk)
    for i in range(tl.cdiv(left, TILE)):
        to = offsets + i * step
        here = inside[:, None] & (tl.arange(0, TILE)[None, :] + i * TILE < left)
        d, off = terms(dy, x, first, to, here, centre[:, None], scale, b[:, None], ACTIVATION)
        tl.store(dx + first + to, d * scale - constant[:, None] - off * slope[:, None], mask=here)


@triton.jit
def parameters(block, plain, centred, dweight, dbias, count, channels, LANES: tl.constexpr, COLUMNS: tl.constexpr):
    """Of some channels dbias and dweight, each where given: column sums of what was measured, ``[count, C]``."""
    column = block * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    sums = tl.zeros([LANES, COLUMNS], plain.dtype.element_ty)
    products = tl.zeros([LANES, COLUMNS], plain.dtype.element_ty)
    for i in range(0, count, LANES):
        line = i + tl.arange(0, LANES)[:, None]
        here = (line < count) & (column < channels)
        to = line.to(tl.int64) * channels + column
        if dbias is not None:
            sums += tl.load(plain + to, mask=here, other=0)
        if dweight is not None:
            products += tl.load(centred + to, mask=here, other=0)
    to = block * COLUMNS + tl.arange(0, COLUMNS)
    if dbias is not None:
        tl.store(dbias + to, tl.sum(sums, axis=0), mask=to < channels)
    if dweight is not None:
        tl.store(dweight + to, tl.sum(products, axis=0), mask=to < channels)


@triton.jit
def measure_kernel(
    dy, x, weight, bias, mean, rstd, dx, plain, centred, at,
    SLAB: tl.constexpr, TILE: tl.constexpr, CHANNELS_LAST: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    measure(
        block, dy, x, weight, bias, mean, rstd, dx, plain, centred, at, SLAB, TILE, CHANNELS_LAST, ACTIVATION
    )  # fmt: skip


@triton.jit
def sum_kernel(
    plain, centred, pooled, pooled_centred, weight, dweight, dbias, groups, count, at,
    LANES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The groups, if any, then the parameters."""
    program = tl.program_id(0)
    if program < groups:
        settle(program, weight, plain, centred, pooled, pooled_centred, at, LANES * COLUMNS)
    else:
        parameters(program - groups, plain, centred, dweight, dbias, count, at.channels, LANES, COLUMNS)


@triton.jit
def apply_kernel(
    dy, x, weight, bias, mean, rstd, pooled, pooled_centred, dx, at,
    SLAB: tl.constexpr, TILE: tl.constexpr, CHANNELS_LAST: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """From the last block to the first: what was measured last is still in the cache."""
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    apply(
        block, dy, x, weight, bias, mean, rstd, pooled, pooled_centred, dx, at, SLAB, TILE, CHANNELS_LAST, ACTIVATION
    )  # fmt: skip


@triton.jit
def streamed_kernel(
    dy, x, weight, bias, mean, rstd, dx, plain, centred, pooled, pooled_centred, counters, blocks, lead, at,
    SLAB: tl.constexpr, TILE: tl.constexpr, ACTIVATION: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """The three steps in one, as in the forward pass."""
    ticket = take_ticket(counters)
    span_blocks = at.slabs * at.chunks
    if ticket < blocks:
        measure(ticket, dy, x, weight, bias, mean, rstd, None, plain, centred, at, SLAB, TILE, False, ACTIVATION)
        span = ticket // span_blocks
        if arrive(counters + 1 + span) == span_blocks - 1:
            settle(span, weight, plain, centred, pooled, pooled_centred, at, LANES)
            arrive(counters + 1 + span)
    late = ticket - lead
    if late >= 0:
        span = late // span_blocks
        wait(counters + 1 + span, span_blocks + 1)
        block = (span + 1) * span_blocks - 1 - late % span_blocks
        apply(block, dy, x, weight, bias, mean, rstd, pooled, pooled_centred, dx, at, SLAB, TILE, False, ACTIVATION)
