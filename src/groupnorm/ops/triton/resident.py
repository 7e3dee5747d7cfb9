"""Groups that fit the registers of one program, which reads them once; in both layouts.

A program has a tile ``[COUNT, MEMBERS, TILE]`` of groups, the channels of each, and their positions; the two latter are
rounded up to powers of two. Its groups are the same group of adjacent samples, so that the sums for the parameters run
over the samples first; or adjacent groups of one sample, where a group's share of a row is too short to be read alone.
"""

# mypy: ignore-errors

import triton
import triton.language as tl

from groupnorm.ops.triton.activation import activate
from groupnorm.ops.triton.backward_blocks import terms
from groupnorm.ops.triton.blocks import affine, group_start, read
from groupnorm.ops.triton.forward_blocks import reciprocal_deviation


@triton.jit
def part(
    samples, at,
    COUNT: tl.constexpr, MEMBERS: tl.constexpr, TILE: tl.constexpr,
    OF_SAMPLES: tl.constexpr, CHANNELS_LAST: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """What a program has of the input; the length of rows is a multiple of ``VECTOR``, which lets loads be as wide.

    Returns:
        its groups ``[COUNT]``, of ``N G``, and which exist; their channels ``[1 or COUNT, MEMBERS]`` in the sample, and
        which exist; the offset of the first element, those of the groups' first ones from it ``[COUNT]``, those of all
        ``[COUNT, MEMBERS, TILE]``, and which exist.
    """
    program = tl.program_id(0)
    groups = at.channels // at.members
    members, positions = at.members, at.positions
    if CHANNELS_LAST:
        members = members // VECTOR * VECTOR
    else:
        positions = positions // VECTOR * VECTOR
    count = tl.arange(0, COUNT)
    member = tl.arange(0, MEMBERS)
    position = tl.arange(0, TILE)[None, None, :]
    if OF_SAMPLES:
        sample = program // groups * COUNT
        start = sample * groups + program % groups
        group = start + count * groups
        exists = sample + count < samples
        starts = count * at.channels * positions
        channel = (program % groups * members + member)[None, :]
    else:
        start = program * COUNT
        group = start + count
        exists = count < COUNT
        starts = count * members
        if not CHANNELS_LAST:
            starts *= positions
        channel = (start % groups + count)[:, None] * members + member[None, :]
    inside = (member < members)[None, :]
    if CHANNELS_LAST:
        offsets = starts[:, None, None] + member[None, :, None] + position * at.channels
    else:
        offsets = starts[:, None, None] + member[None, :, None] * positions + position
    here = exists[:, None, None] & inside[:, :, None] & (position < positions)
    first = group_start(start, at.channels, members, positions, CHANNELS_LAST)
    return group, exists, channel, inside, first, starts, offsets, here


@triton.jit
def group_sum(value):
    """``[COUNT]``: the sum over the channels and positions of each group."""
    return tl.sum(tl.sum(value, axis=2), axis=1)


@triton.jit
def forward_kernel(
    x, residual, total, weight, bias, y, mean, rstd, eps, eps_rest, samples, at,
    COUNT: tl.constexpr, MEMBERS: tl.constexpr, TILE: tl.constexpr,
    OF_SAMPLES: tl.constexpr, CHANNELS_LAST: tl.constexpr, VECTOR: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Statistics, by three passes over the registers, of which the second mends the first; and y, where it is given."""
    group, exists, channel, inside, first, _, offsets, here = part(
        samples, at, COUNT, MEMBERS, TILE, OF_SAMPLES, CHANNELS_LAST, VECTOR
    )  # fmt: skip
    value = read(x, residual, first, offsets, here)
    if total is not None:
        tl.store(total + first + offsets, value, mask=here)
    size = tl.cast(at.members * at.positions, value.dtype)
    origin = group_sum(value) / size
    value = tl.where(here, value - origin[:, None, None], 0)
    centre = group_sum(value) / size
    value = tl.where(here, value - centre[:, None, None], 0)
    factor = reciprocal_deviation(group_sum(value * value) / size, eps, eps_rest)
    tl.store(mean + group, origin + centre, mask=exists)
    tl.store(rstd + group, factor, mask=exists)
    if y is not None:
        w, b = affine(weight, bias, channel, inside, factor)
        z = value * (w * factor[:, None])[:, :, None] + b[:, :, None]
        tl.store(y + first + offsets, activate(z, ACTIVATION), mask=here)


@triton.jit
def backward_kernel(
    dy, x, weight, bias, mean, rstd, dx, plain, centred, pooled, pooled_centred, samples, at,
    COUNT: tl.constexpr, MEMBERS: tl.constexpr, TILE: tl.constexpr,
    OF_SAMPLES: tl.constexpr, CHANNELS_LAST: tl.constexpr, VECTOR: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """dx, and the sums of the channels at ``[line, C]``, each where it is given.

    Where the sums of the groups are given too, the statistics are constants: ``dx = rstd g``.
    """
    group, exists, channel, inside, first, _, offsets, here = part(
        samples, at, COUNT, MEMBERS, TILE, OF_SAMPLES, CHANNELS_LAST, VECTOR
    )  # fmt: skip
    centre = tl.load(mean + group, mask=exists, other=0)
    factor = tl.load(rstd + group, mask=exists, other=0)
    w, b = affine(weight, bias, channel, inside, factor)
    scale = (w * factor[:, None])[:, :, None]
    d, off = terms(dy, x, first, offsets, here, centre[:, None, None], scale, b[:, :, None], ACTIVATION)
    sums, products = tl.sum(d, axis=2), tl.sum(d * off, axis=2) * factor[:, None]
    if plain is not None:
        member = tl.arange(0, MEMBERS)
        if OF_SAMPLES:  # a line for each program that has the group
            groups = at.channels // at.members
            line = (tl.program_id(0) // groups).to(tl.int64) * at.channels
            to = line + (tl.program_id(0) % groups * at.members + member)
            tl.store(plain + to, tl.sum(sums, axis=0), mask=member < at.members)
            tl.store(centred + to, tl.sum(products, axis=0), mask=member < at.members)
        else:  # a line for each sample
            to = group[:, None] * at.members + member[None, :]
            tl.store(plain + to, sums, mask=exists[:, None] & inside)
            tl.store(centred + to, products, mask=exists[:, None] & inside)
    sums, products = tl.sum(w * sums, axis=1), tl.sum(w * products, axis=1)
    if pooled is not None:
        tl.store(pooled + group, sums, mask=exists)
        tl.store(pooled_centred + group, products, mask=exists)
    if dx is not None:
        gradient = d * scale
        if pooled is None:
            per_element = factor / tl.cast(at.members * at.positions, factor.dtype)
            constant, slope = sums * per_element, products * (per_element * factor)
            gradient = gradient - constant[:, None, None] - off * slope[:, None, None]
        tl.store(dx + first + offsets, gradient, mask=here)
