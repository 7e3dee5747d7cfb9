"""What bounds each case of a CPU: the call, arithmetic, or memory, which has to be read once or twice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from groupnorm.bench.contenders import COPY, TORCH
from groupnorm.bench.judge import fits, geometric_mean, limit, measured
from groupnorm.bench.measure import BOTH, FORWARD, PASSES, WARM
from groupnorm.bench.rates import rate
from groupnorm.bench.store import RATES, Results

CALL = "the call"
ARITHMETIC = "arithmetic"
MEMORY = "memory"
MEMORY_AGAIN = "memory, read again"
EVERY = "all"
BOUNDS = (CALL, ARITHMETIC, MEMORY, MEMORY_AGAIN, EVERY)

_READ_AGAIN = {FORWARD: 3, BOTH: 8}
"""Passes where a group's statistics are complete only when its beginning has left the cache: x again in the forward
pass, x and dy again in the backward pass."""


class Bound(NamedTuple):
    """The cases of a phase that have one bound; how many times as fast as torch eager, in the geometric mean.

    Attributes:
        phase: forward, or forward+backward.
        what: bounds them.
        cases: how many there are.
        ours: the package.
        reach: what takes no longer than its parts took by themselves: the call, then arithmetic or memory, whichever
            takes longer.
        bytes: what moves each byte once at the rate of a copy, and takes no time besides.
    """

    phase: str
    what: str
    cases: int
    ours: float
    reach: float
    bytes: float


def bounds(found: Results) -> list[Bound]:
    """Each bound of each phase that some case has, and all cases, in memory that is there, as the rate of a copy is.

    Nothing where it was not measured what calls and arithmetic cost.
    """
    rows = []
    for phase in (FORWARD, BOTH):
        every = list(_bound(found, phase))
        for what in BOUNDS:
            if some := [numbers for bound, numbers in every if what in (bound, EVERY)]:
                rows.append(Bound(phase, what, len(some), *map(geometric_mean, zip(*some, strict=True))))
    return rows


def _bound(found: Results, phase: str) -> Iterator[tuple[str, tuple[float, float, float]]]:
    """What bounds a case, and :class:`Bound`'s three numbers of it."""
    for case, entry in measured(found):
        timing, kernels = entry["timings"].get(phase + WARM), found[RATES].get(case.kind)
        if timing is None or kernels is None:
            continue
        call, element = rate(kernels, phase)
        copy, torch = (timing["seconds"][name][1] for name in (COPY, TORCH))
        memory, passes = (MEMORY, PASSES[phase]) if fits(case, found) else (MEMORY_AGAIN, _READ_AGAIN[phase])
        work = {ARITHMETIC: element * case.shape.elements, memory: copy * passes / PASSES[COPY]}
        longest = max(work, key=lambda name: work[name])
        what = CALL if call > work[longest] else longest
        yield what, (timing["ratios"][TORCH], torch / (call + work[longest]), limit(timing, PASSES[phase]))
