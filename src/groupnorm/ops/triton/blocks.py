"""Blocks: the parts of a tensor that one program reads and writes, in both layouts.

A block is some adjacent channels, a slab, at a range of positions, a chunk. It lies within a span: the channels that
a slab may not reach across. The spans are the samples, ``width = C``, or where they depend on one another group by
group, the groups, ``width = D``.

    N, C, G   samples, channels, groups
    D         channels of a group, ``C / G``
    P         positions
    rows      ``N C``: one for each channel of each sample

Offsets of blocks are 64 bits wide. Those within blocks have 32, and so have the numbers of blocks, groups and rows.
"""

# mypy: ignore-errors

import triton
import triton.language as tl

INTERPRETED = triton.knobs.runtime.interpret
"""Whether kernels run in Triton's interpreter: TRITON_INTERPRET was set when they were defined."""


@triton.jit
def place(block, at, SLAB: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """Where a block lies.

    Args:
        block: its number.
        at: the geometry (:class:`groupnorm.ops.triton.plan.Geometry`).
        SLAB: channels of the block.
        CHANNELS_LAST: the layout.

    Returns:
        Its span; its first channel, counted from that of the span; its chunk; the offset of its first element.
    """
    channel = block % at.slabs * SLAB
    chunk = block // at.slabs % at.chunks
    span = block // at.slabs // at.chunks
    if CHANNELS_LAST:
        first = (span.to(tl.int64) * at.positions + chunk * at.chunk) * at.width + channel
    else:
        first = (span * at.width + channel).to(tl.int64) * at.positions + chunk * at.chunk
    return span, channel, chunk, first


@triton.jit
def elements(at, SLAB: tl.constexpr, TILE: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """Offsets ``[SLAB, TILE]`` of a block's first tile from its first element, and the way from a tile to the next."""
    channel, position = tl.arange(0, SLAB)[:, None], tl.arange(0, TILE)[None, :]
    if CHANNELS_LAST:
        offsets, step = position * at.width + channel, TILE * at.width
    else:
        offsets, step = channel * at.positions + position, TILE
    return offsets, step


@triton.jit
def slab(span, channel, at, SLAB: tl.constexpr):
    """Of the channels of a slab ``[SLAB]``: whether they exist, their number in the sample, and that of their group."""
    channels = channel + tl.arange(0, SLAB)
    group = span * (at.width // at.members) + channels // at.members
    return channels < at.width, span % (at.channels // at.width) * at.width + channels, group


@triton.jit
def group_start(group, channels, members, positions, CHANNELS_LAST: tl.constexpr):
    """Offset of the first element of the groups with these numbers, of ``N G``."""
    if CHANNELS_LAST:
        sample, first = group // (channels // members), group % (channels // members) * members
        first += (sample.to(tl.int64) * channels) * positions
    else:
        first = (group.to(tl.int64) * members) * positions
    return first


@triton.jit
def affine(weight, bias, channels, inside, like):
    """Weight and bias of these channels, in the dtype of ``like``; 1 and 0 where there are none."""
    w = tl.full(channels.shape, 1, like.dtype)
    b = tl.zeros(channels.shape, like.dtype)
    if weight is not None:
        w = tl.load(weight + channels, mask=inside, other=0).to(like.dtype)
    if bias is not None:
        b = tl.load(bias + channels, mask=inside, other=0).to(like.dtype)
    return w, b


@triton.jit
def accumulated(value):
    """In the dtype of sums: float32, and float64 where that is what the tensor is."""
    if value.dtype != tl.float64:
        value = value.to(tl.float32)
    return value


@triton.jit
def read(x, residual, first, offsets, mask):
    """``x + residual``, rounded to their dtype; x where there is no residual, and 0 where masked out."""
    value = accumulated(tl.load(x + first + offsets, mask=mask, other=0))
    if residual is not None:
        value += accumulated(tl.load(residual + first + offsets, mask=mask, other=0))
        value = accumulated(value.to(x.dtype.element_ty))
    return value


@triton.jit
def fetched(x, residual, to, mask):
    """As :func:`read`, but past the cache of the multiprocessor, which does not see what others wrote."""
    value = accumulated(tl.load(x + to, mask=mask, other=0, cache_modifier=".cg"))
    if residual is not None:
        value += accumulated(tl.load(residual + to, mask=mask, other=0, cache_modifier=".cg"))
        value = accumulated(value.to(x.dtype.element_ty))
    return value


@triton.jit
def origin_of(x, residual, start, at, mask, CHANNELS_LAST: tl.constexpr):
    """A number among those of each group: the median of three of its first channel, so that no single outlier is it."""
    step = at.channels if CHANNELS_LAST else 1
    a = fetched(x, residual, start, mask)
    b = fetched(x, residual, start + tl.cast(at.positions // 2, tl.int64) * step, mask)
    c = fetched(x, residual, start + tl.cast(at.positions - 1, tl.int64) * step, mask)
    return tl.maximum(tl.minimum(a, b), tl.minimum(tl.maximum(a, b), c))
