"""One program for each group of a contiguous tensor, which goes over it twice; the second time it is in the cache.

For groups too large for registers and small enough for the cache of one multiprocessor, or its share of the L2.
"""

# mypy: ignore-errors

import triton
import triton.language as tl

from groupnorm.ops.triton.activation import activate
from groupnorm.ops.triton.backward_blocks import terms
from groupnorm.ops.triton.blocks import affine, elements, origin_of, read
from groupnorm.ops.triton.forward_blocks import moments, reciprocal_deviation, two_sum


@triton.jit
def tile_of_group(i, at, SLAB: tl.constexpr, TILE: tl.constexpr):
    """Of a group's i-th tile: its channels ``[SLAB]`` in the group, its chunk, where it starts, what exists of it."""
    chunks = tl.cdiv(at.positions, TILE)
    channel, chunk = i // chunks * SLAB, i % chunks
    channels = channel + tl.arange(0, SLAB)
    here = (channels < at.members)[:, None] & (chunk * TILE + tl.arange(0, TILE)[None, :] < at.positions)
    return channels, chunk, channel * at.positions + chunk * TILE, here


@triton.jit
def forward_kernel(
    x, residual, total, weight, bias, y, mean, rstd, eps, eps_rest, at,
    SLAB: tl.constexpr, TILE: tl.constexpr, ACTIVATION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """In the first round a group is one row, in the second it is a row for each channel."""
    group = tl.program_id(0)
    size = at.members * at.positions
    first = group.to(tl.int64) * size
    lane = tl.arange(0, SLAB * TILE)[None, :]
    origin = origin_of(x, residual, first, at, True, False)
    centre, squares = moments(x, residual, total, first, lane, SLAB * TILE, lane, size, True, origin, STAGES)
    head, rest = two_sum(origin, tl.sum(centre))
    factor = reciprocal_deviation(tl.sum(squares) / tl.cast(size, origin.dtype), eps, eps_rest)
    tl.store(mean + group, head)
    tl.store(rstd + group, factor)
    tl.debug_barrier()  # the total is read again by other threads than those that wrote it
    source = x if total is None else total
    offsets, _ = elements(at, SLAB, TILE, False)
    start = group % (at.channels // at.members) * at.members
    for i in tl.range(0, tl.cdiv(at.members, SLAB) * tl.cdiv(at.positions, TILE), num_stages=STAGES):
        channels, _, to, here = tile_of_group(i, at, SLAB, TILE)
        w, b = affine(weight, bias, start + channels, channels < at.members, factor)
        scale = w * factor
        value = read(source, None, first + to, offsets, here)
        z = (value - head) * scale[:, None] + (b - rest * scale)[:, None]
        tl.store(y + first + to + offsets, activate(z, ACTIVATION), mask=here)


@triton.jit
def backward_kernel(
    dy, x, weight, bias, mean, rstd, dx, plain, centred, at,
    SLAB: tl.constexpr, TILE: tl.constexpr, ACTIVATION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """dx; and the sums of the channels at ``[chunk, row]``, where they are wanted."""
    group = tl.program_id(0)
    size = at.members * at.positions
    first = group.to(tl.int64) * size
    centre, factor = tl.load(mean + group), tl.load(rstd + group)
    offsets, _ = elements(at, SLAB, TILE, False)
    start = group % (at.channels // at.members) * at.members
    tiles = tl.cdiv(at.members, SLAB) * tl.cdiv(at.positions, TILE)
    sums = tl.zeros([SLAB], factor.dtype)
    products = tl.zeros([SLAB], factor.dtype)
    for i in tl.range(0, tiles, num_stages=STAGES):
        channels, chunk, to, here = tile_of_group(i, at, SLAB, TILE)
        w, b = affine(weight, bias, start + channels, channels < at.members, factor)
        d, off = terms(dy, x, first + to, offsets, here, centre, (w * factor)[:, None], b[:, None], ACTIVATION)
        of_d, of_products = tl.sum(d, axis=1), tl.sum(d * off, axis=1) * factor
        if plain is not None:
            row = chunk.to(tl.int64) * at.rows + (group * at.members + channels)
            tl.store(plain + row, of_d, mask=channels < at.members)
            tl.store(centred + row, of_products, mask=channels < at.members)
        sums += w * of_d
        products += w * of_products
    per_element = factor / tl.cast(size, factor.dtype)
    constant, slope = tl.sum(sums) * per_element, tl.sum(products) * (per_element * factor)
    for i in tl.range(0, tiles, num_stages=STAGES):
        channels, _, to, here = tile_of_group(i, at, SLAB, TILE)
        w, b = affine(weight, bias, start + channels, channels < at.members, factor)
        scale = (w * factor)[:, None]
        d, off = terms(dy, x, first + to, offsets, here, centre, scale, b[:, None], ACTIVATION)
        tl.store(dx + first + to + offsets, d * scale - constant - off * slope, mask=here)
