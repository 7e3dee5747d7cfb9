"""How a call is cut up: decided by the spec of one sample, so that results depend on no device and no batch.

A group is read once where it fits registers, and otherwise twice, the second time out of a cache where there is a way:

    resident   a group, or several, in the registers of one program: one launch
    looped     a group that one multiprocessor holds in its cache: one program goes over it twice, in one launch
    streamed   larger groups, contiguous: blocks of a group are applied soon after the last was measured, in one launch
    split      channels-last: measure, settle and apply, each a launch, as groups lie across all of memory

The numbers below are sizes of NVIDIA's data-center parts since 2020 (A100, H100, H200): registers of a multiprocessor
256 KB, its cache 192 to 256 KB, L2 40 to 50 MB, around 130 multiprocessors.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

from groupnorm.ops.spec import CHANNELS_LAST, Spec

RESIDENT, LOOPED, STREAMED, SPLIT = "resident", "looped", "streamed", "split"

HELD = {4: 16384, 8: 4096}  # elements of a resident tile, by bytes of the dtype of sums: at most 32 for a thread
CACHE = 128 * 1024  # bytes of a looped group: with dy beside x, a multiprocessor's cache
TILE = 8 * 1024  # bytes of a tile of a block: two loads of 16 bytes for each of 256 threads
LOOPED_TILE = 16 * 1024  # the same for 512 threads
LINE = 128  # bytes of a row of a channels-last slab: a line of the caches
SHORT = 64  # bytes that are too few to be read alone
SMALL = 2048  # elements that a resident program should have, of several groups where they are smaller
BLOCKS = 2048  # enough for several waves; with more than that, blocks become longer
CHUNKS = 512  # at most so many for a channel, so that settling a group stays short
LANES = 1024  # parts of a group that are pooled at once
LINES, COLUMNS = 32, 32  # of the partial sums for the parameters, that a program reads at once
FULL = 264  # programs of 512 threads that run at once: two for each multiprocessor
CROWDED = 64  # registers of a thread when 1024 of them run at once on a multiprocessor
LEAD = 512  # blocks between measuring and applying: about as many as run at once, so that nobody waits


class Geometry(NamedTuple):
    """The numbers that kernels need to find their way; see :mod:`groupnorm.ops.triton.blocks`.

    Attributes:
        channels: ``C``.
        members: ``D``, channels of a group.
        positions: ``P``.
        rows: ``N C``.
        width: channels of a span: ``C`` or ``D``.
        slabs: slabs of a span.
        chunk: positions of a chunk, a multiple of the tile's.
        chunks: chunks of a channel.
    """

    channels: int
    members: int
    positions: int
    rows: int
    width: int
    slabs: int
    chunk: int
    chunks: int


class Blocks(NamedTuple):
    """A tensor in blocks of ``slab`` channels and ``geometry.chunk`` positions, worked off in tiles.

    Attributes:
        geometry: for the kernels.
        slab: channels of a tile, a power of two.
        tile: positions of a tile, a power of two.
        blocks: how many there are.
        spans: how many spans they lie in.
        warps: of each program.
        registers: of each thread, at most, in the streamed route.
    """

    geometry: Geometry
    slab: int
    tile: int
    blocks: int
    spans: int
    warps: int
    registers: int | None

    @property
    def lead(self) -> int:
        """Blocks that are measured before the first is applied, in the streamed route: a span, and some more."""
        return min(self.geometry.slabs * self.geometry.chunks + LEAD, self.blocks)

    @property
    def stages(self) -> int:
        """Tiles that a looped program keeps on their way: several where there are few programs to share the memory."""
        return 3 if self.spans < FULL else 1


class Resident(NamedTuple):
    """A tensor in programs that have whole groups; see :mod:`groupnorm.ops.triton.resident`.

    Attributes:
        geometry: for the kernels.
        groups: of a program.
        members: channels of a group, rounded up to a power of two.
        tile: positions, rounded up to a power of two.
        of_samples: the groups are of adjacent samples; otherwise they are adjacent in one sample.
        vector: power of two that divides the length of rows, in elements.
        programs: how many there are.
        lines: partial sums for each parameter.
        warps: of each program.
    """

    geometry: Geometry
    groups: int
    members: int
    tile: int
    of_samples: bool
    vector: int
    programs: int
    lines: int
    warps: int


@lru_cache(4096)
def route(spec: Spec) -> str:
    """Which of the four ways computes this."""
    if resident(spec) is not None:
        return RESIDENT
    if spec.layout == CHANNELS_LAST:
        return SPLIT
    return LOOPED if group_size(spec) * spec.dtype.itemsize <= CACHE else STREAMED


def group_size(spec: Spec) -> int:
    """Elements that share a mean and a variance."""
    return spec.channels // spec.groups * spec.positions


@lru_cache(4096)
def resident(spec: Spec) -> Resident | None:
    """The call in programs of whole groups; None where they do not fit, or have too little of each row."""
    N, C, P, G = spec.samples, spec.channels, spec.positions, spec.groups
    D, last = C // G, spec.layout == CHANNELS_LAST
    members, tile = power(D), power(P)
    adjacent = (D if last else D * P) * spec.dtype.itemsize  # bytes of a group in a row
    of_samples = adjacent >= SHORT or G == 1
    if of_samples:
        count = power(SMALL // (members * tile))
    else:
        count = math.gcd(G, power(max(SMALL // (members * tile), LINE // adjacent)))
    short = last and not of_samples and count < G and count * adjacent < SHORT
    if short or count * members * tile > HELD[spec.accumulates.itemsize] or count * C * P >= 2**31:
        return None
    lines = -(-N // count) if of_samples else N
    programs = lines * G if of_samples else N * G // count
    warps = min(max(count * members * tile // 512, 1), 16)
    vector = math.gcd(D if last else P, 16)
    return Resident(geometry(spec, C, 1, P), count, members, tile, of_samples, vector, programs, lines, warps)


@lru_cache(4096)
def looped(spec: Spec) -> Blocks:
    """The call in groups, and these in tiles."""
    return cut(spec, spec.channels // spec.groups, LOOPED_TILE, 1)


@lru_cache(4096)
def streamed(spec: Spec) -> Blocks:
    """The call in blocks that lie within groups."""
    return cut(spec, spec.channels // spec.groups, TILE, 2)


@lru_cache(4096)
def split(spec: Spec) -> Blocks:
    """The call in blocks that lie within samples, in either layout."""
    return cut(spec, spec.channels, TILE, 4)


def cut(spec: Spec, width: int, room: int, longest: int) -> Blocks:
    """Blocks within spans of ``width`` channels, in tiles of ``room`` bytes.

    A block has one tile. Where ``longest`` is more than 1, it has up to so many if one sample has blocks enough, and
    still more if a channel would otherwise have more chunks than :data:`CHUNKS`.
    """
    N, C, P = spec.samples, spec.channels, spec.positions
    elements = room // spec.dtype.itemsize
    if spec.layout == CHANNELS_LAST:
        slab = min(power(width), LINE // spec.dtype.itemsize)
        tile = min(power(P), elements // slab)
    else:
        tile = min(power(P), elements)
        slab = min(power(width), elements // tile)
    spans, slabs, tiles = N * C // width, -(-width // slab), -(-P // tile)
    length = 1
    if longest > 1:
        length = max(min(longest, C // width * slabs * tiles // BLOCKS), -(-tiles // CHUNKS), 1)
    at = geometry(spec, width, slabs, length * tile)
    warps = min(max(slab * tile * spec.dtype.itemsize // 1024, 1), 16)
    registers = CROWDED if spec.accumulates.itemsize == 4 and P % 16 == 0 else None  # narrow loads take more of them
    return Blocks(at, slab, tile, spans * slabs * at.chunks, spans, warps, registers)


def geometry(spec: Spec, width: int, slabs: int, chunk: int) -> Geometry:
    """The geometry of a call with such spans and chunks."""
    N, C, P = spec.samples, spec.channels, spec.positions
    return Geometry(C, C // spec.groups, P, N * C, width, slabs, chunk, -(-P // chunk))


def power(n: int) -> int:
    """The smallest power of two that is not below ``n``."""
    return 1 << max(n - 1, 0).bit_length()
