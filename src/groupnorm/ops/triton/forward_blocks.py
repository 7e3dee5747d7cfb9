"""The forward pass in three steps over blocks: measure, settle, apply; as three kernels, or as one.

    measure   mean and sum of squares about it, of each channel of each block; x is read
    settle    mean and ``1 / sqrt(var + eps)`` of each group, from those of its channels and chunks
    apply     y; x is read again

Numbers are taken relative to one of their group, the origin, so that digits are spent on what varies,
and pooled by Chan's formula (Chan, Golub & LeVeque 1983): nowhere is the mean's square taken from the mean of squares.
The mean of a group is kept as two numbers, ``mean + rest``, of which the caller gets the first.
"""

# mypy: ignore-errors

import triton
import triton.language as tl

from groupnorm.ops.triton.activation import activate
from groupnorm.ops.triton.blocks import affine, elements, group_start, origin_of, place, read, slab
from groupnorm.ops.triton.order import arrive, take_ticket, wait


@triton.jit
def moments(x, residual, total, first, offsets, step, position, left, inside, origin, STAGES: tl.constexpr):
    """Mean and sum of squares about it, of each channel along the tiles of a block.

    Each lane of the tile follows its own by Welford's recurrence; at the end they are pooled.

    Args:
        x: input.
        residual: added to it, where given.
        total: receives the sum, where given.
        first: offset of the block's first element.
        offsets: ``[SLAB, TILE]``, of the first tile from there.
        step: the way to the next tile.
        position: ``[1, TILE]``, of the first tile in the block.
        left: positions of the block.
        inside: ``[SLAB, 1]``, channels that exist.
        origin: ``[SLAB, 1]`` or one for all, subtracted from each number.
        STAGES: tiles on their way at once.

    Returns:
        Two times ``[SLAB]``; the mean is relative to the origin.
    """
    TILE: tl.constexpr = offsets.shape[1]
    mean = tl.zeros(offsets.shape, origin.dtype)
    squares = tl.zeros(offsets.shape, origin.dtype)
    for i in tl.range(0, tl.cdiv(left, TILE), num_stages=STAGES):
        to = offsets + i * step
        here = inside & (position + i * TILE < left)
        value = read(x, residual, first, to, here)
        if total is not None:
            tl.store(total + first + to, value, mask=here)
        value = tl.where(here, value - origin, mean)  # what is not there changes nothing
        off = value - mean
        mean += off * (1 / tl.cast(i + 1, mean.dtype))
        squares += off * (value - mean)
    seen = ((left - position + TILE - 1) // TILE).to(mean.dtype)
    pooled = tl.sum(mean * seen, axis=1) / tl.cast(left, mean.dtype)
    off = mean - pooled[:, None]
    return pooled, tl.sum(squares + off * off * seen, axis=1)


@triton.jit
def measure(
    block, x, residual, total, means, squares, at,
    SLAB: tl.constexpr, TILE: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """Store mean (relative to the origin) and sum of squares of the channels of a block, at ``[chunk, row]``."""
    span, channel, chunk, first = place(block, at, SLAB, CHANNELS_LAST)
    inside, _, group = slab(span, channel, at, SLAB)
    start = group_start(group, at.channels, at.members, at.positions, CHANNELS_LAST)
    origin = origin_of(x, residual, start, at, inside, CHANNELS_LAST)
    offsets, step = elements(at, SLAB, TILE, CHANNELS_LAST)
    mean, square = moments(
        x,
        residual,
        total,
        first,
        offsets,
        step,
        tl.arange(0, TILE)[None, :],
        tl.minimum(at.positions - chunk * at.chunk, at.chunk),
        inside[:, None],
        origin[:, None],
        1,
    )
    to = chunk.to(tl.int64) * at.rows + (span * at.width + channel + tl.arange(0, SLAB))
    tl.store(means + to, mean, mask=inside)
    tl.store(squares + to, square, mask=inside)


@triton.jit
def settle(
    group, x, means, squares, mean, rstd, rest, eps, eps_rest, at, CHANNELS_LAST: tl.constexpr, LANES: tl.constexpr
):
    """Pool what was measured of a group's channels and chunks, and store its ``mean + rest`` and rstd.

    Partial sums, and with them their order, depend on nothing but the geometry.
    """
    start = group_start(group, at.channels, at.members, at.positions, CHANNELS_LAST)
    origin = origin_of(x, None, start, at, True, CHANNELS_LAST)
    pooled = tl.zeros([LANES], origin.dtype)
    for i in range(0, at.members * at.chunks, LANES):
        to, count, here = measured(i + tl.arange(0, LANES), group, at)
        part = tl.load(means + to, mask=here, other=0, cache_modifier=".cg")
        pooled += part * count.to(origin.dtype)
    size = tl.cast(at.members, origin.dtype) * tl.cast(at.positions, origin.dtype)
    centre = tl.sum(pooled, axis=0) / size
    spread = tl.zeros([LANES], origin.dtype)
    for i in range(0, at.members * at.chunks, LANES):
        to, count, here = measured(i + tl.arange(0, LANES), group, at)
        off = tl.load(means + to, mask=here, other=0, cache_modifier=".cg") - centre
        part = tl.load(squares + to, mask=here, other=0, cache_modifier=".cg")
        spread += tl.where(here, part + off * off * count.to(origin.dtype), 0)
    head, tail = two_sum(origin, centre)
    tl.store(mean + group, head)
    tl.store(rest + group, tail)
    tl.store(rstd + group, reciprocal_deviation(tl.sum(spread, axis=0) / size, eps, eps_rest))


@triton.jit
def measured(part, group, at):
    """Of the parts (chunk by chunk, each with all channels) of a group: where they are, how many positions, if any."""
    chunk = part // at.members
    to = chunk.to(tl.int64) * at.rows + (group * at.members + part % at.members)
    return to, tl.minimum(at.positions - chunk * at.chunk, at.chunk), chunk < at.chunks


@triton.jit
def two_sum(a, b):
    """``a + b`` rounded, and what the rounding left out, exactly (Knuth)."""
    head = a + b
    other = head - a
    return head, (a - (head - other)) + (b - other)


@triton.jit
def reciprocal_deviation(variance, eps, eps_rest):
    """``1 / sqrt(variance + eps)``, and NaN where the variance overflowed: 0 would hide that a training has diverged.

    eps is a float32 and what its rounding left out, which float64 has room for.
    """
    variance += eps_rest + eps
    deviation = tl.sqrt(variance) if variance.dtype == tl.float64 else tl.sqrt_rn(variance)  # sqrt_rn has no double
    return tl.where(deviation < float("inf"), 1 / deviation, float("nan"))


@triton.jit
def apply(
    block, x, residual, total, weight, bias, y, mean, rstd, rest, at,
    SLAB: tl.constexpr, TILE: tl.constexpr, CHANNELS_LAST: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """``y = act((x - mean) rstd w + b)`` over a block; of ``x + residual``, stored to ``total``, where there is one."""
    span, channel, chunk, first = place(block, at, SLAB, CHANNELS_LAST)
    inside, channels, group = slab(span, channel, at, SLAB)
    centre = tl.load(mean + group, mask=inside, other=0, cache_modifier=".cg")
    scale = tl.load(rstd + group, mask=inside, other=0, cache_modifier=".cg")
    w, shift = affine(weight, bias, channels, inside, scale)
    scale *= w
    if rest is not None:
        shift -= scale * tl.load(rest + group, mask=inside, other=0, cache_modifier=".cg")
    offsets, step = elements(at, SLAB, TILE, CHANNELS_LAST)
    left = tl.minimum(at.positions - chunk * at.chunk, at.chunk)
    for i in range(tl.cdiv(left, TILE)):
        to = offsets + i * step
        here = inside[:, None] & (tl.arange(0, TILE)[None, :] + i * TILE < left)
        value = read(x, residual, first, to, here)
        if total is not None:
            tl.store(total + first + to, value, mask=here)
        z = (value - centre[:, None]) * scale[:, None] + shift[:, None]
        tl.store(y + first + to, activate(z, ACTIVATION), mask=here)


@triton.jit
def measure_kernel(
    x, residual, total, means, squares, at,
    SLAB: tl.constexpr, TILE: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    measure(tl.program_id(0), x, residual, total, means, squares, at, SLAB, TILE, CHANNELS_LAST)


@triton.jit
def settle_kernel(
    x, means, squares, mean, rstd, rest, eps, eps_rest, at, CHANNELS_LAST: tl.constexpr, LANES: tl.constexpr
):
    settle(tl.program_id(0), x, means, squares, mean, rstd, rest, eps, eps_rest, at, CHANNELS_LAST, LANES)


@triton.jit
def apply_kernel(
    x, residual, total, weight, bias, y, mean, rstd, rest, at,
    SLAB: tl.constexpr, TILE: tl.constexpr, CHANNELS_LAST: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """From the last block to the first: what was measured last is still in the cache."""
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    apply(
        block, x, residual, total, weight, bias, y, mean, rstd, rest, at, SLAB, TILE, CHANNELS_LAST, ACTIVATION
    )  # fmt: skip


@triton.jit
def streamed_kernel(
    x, residual, total, weight, bias, y, means, squares, mean, rstd, rest, eps, eps_rest, counters, blocks, lead, at,
    SLAB: tl.constexpr, TILE: tl.constexpr, ACTIVATION: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """All three in one, in the contiguous layout: a group is applied soon after it was measured, out of the cache."""
    ticket = take_ticket(counters)
    span_blocks = at.slabs * at.chunks
    if ticket < blocks:
        measure(ticket, x, residual, total, means, squares, at, SLAB, TILE, False)
        span = ticket // span_blocks
        if arrive(counters + 1 + span) == span_blocks - 1:
            source = x if total is None else total
            settle(span, source, means, squares, mean, rstd, rest, eps, eps_rest, at, False, LANES)
            arrive(counters + 1 + span)
    late = ticket - lead
    if late >= 0:
        span = late // span_blocks
        wait(counters + 1 + span, span_blocks + 1)
        block = (span + 1) * span_blocks - 1 - late % span_blocks  # backwards: the end of a long group was read last
        source = x if total is None else total
        apply(block, source, None, None, weight, bias, y, mean, rstd, rest, at, SLAB, TILE, False, ACTIVATION)
