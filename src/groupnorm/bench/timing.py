"""Interleaved timing: in each round everything runs once, so that what disturbs the machine disturbs all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any, Protocol

import numpy as np
import torch

from groupnorm.bench.machine import watching_others

Run = Callable[[], object]
"""What is timed. What it returns is freed after the clock has stopped."""

Runs = Mapping[str, Callable[[], Run]]
"""What makes a run ready, outside the clock, by the name of the contender."""

FEWEST = 5
MOST = 1000
"""Rounds."""

FEWEST_LONG = 3
LONG = 10.0
"""Seconds from which on a round is long, and :data:`FEWEST_LONG` rounds are enough."""

_FLUSHED = 1 << 30  # bytes: more than any L2, and long enough to write that the host is ahead of the GPU


class Clock(Protocol):
    """Seconds of one run."""

    def __call__(self, run: Run) -> float: ...


def wall_clock(run: Run) -> float:
    """On a CPU."""
    begin = time.perf_counter()
    kept = run()
    seconds = time.perf_counter() - begin
    del kept
    return seconds


class EventClock:
    """On a GPU, by its own events, after a write that leaves nothing of the tensors in the L2."""

    def __init__(self) -> None:
        self._buffer = torch.empty(_FLUSHED, dtype=torch.int8, device="cuda")
        self._begin, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def __call__(self, run: Run) -> float:
        self._buffer.zero_()
        self._begin.record()
        kept = run()
        self._end.record()
        self._end.synchronize()
        del kept
        return float(self._begin.elapsed_time(self._end)) / 1000


def clock_of(device: str) -> Clock:
    """The clock for "cpu" or "cuda"."""
    return EventClock() if device == "cuda" else wall_clock


def timed(runs: Runs, clock: Clock, seconds: float, mine: str) -> dict[str, Any]:
    """Warm up for half of ``seconds``, time for ``seconds``: :func:`figures`, and ``others``, the cores that other
    processes kept busy meanwhile.
    """
    warm_up(runs, clock, seconds / 2)
    with watching_others() as quiet:
        times = rounds(runs, clock, seconds)
    return figures(times, mine) | quiet


def warm_up(runs: Runs, clock: Clock, seconds: float) -> None:
    """Rounds that are not counted: they compile, and memory finds its place; under a hypervisor that takes a dozen.

    Args:
        runs: what is timed.
        clock: how.
        seconds: for all of them; at least one is made, and a second unless the first was long.
    """
    begin = time.perf_counter()
    for number in range(MOST):
        spent = sum(clock(ready()) for ready in runs.values())
        if (number or spent > LONG) and time.perf_counter() - begin >= seconds:
            break


def rounds(runs: Runs, clock: Clock, seconds: float) -> dict[str, list[float]]:
    """Seconds of each run in each round.

    Each round begins with the next contender, and every other time around goes backwards, so that none profits from its
    place in the queue.

    Args:
        runs: what is timed.
        clock: how.
        seconds: time for all rounds; at least :data:`FEWEST` are made, or :data:`FEWEST_LONG` long ones.
    """
    names = list(runs)
    times: dict[str, list[float]] = {name: [] for name in names}
    begin = time.perf_counter()
    for number in range(MOST):
        for name in order(names, number):
            times[name].append(clock(runs[name]()))
        fewest = FEWEST_LONG if sum(own[0] for own in times.values()) > LONG else FEWEST
        if number + 1 >= fewest and time.perf_counter() - begin >= seconds:
            break
    return times


def order(names: list[str], number: int) -> list[str]:
    """Who follows whom in a round."""
    turn, first = divmod(number, len(names))
    rotated = names[first:] + names[:first]
    return rotated[::-1] if turn % 2 else rotated


def figures(times: Mapping[str, list[float]], mine: str) -> dict[str, Any]:
    """Median, 20th and 80th percentile in seconds, and how many times as long as ``mine`` each of the others takes.

    The ratio is the median of the ratios within each round, in which both bore the same disturbances.

    Args:
        times: as of :func:`rounds`.
        mine: the contender that is compared.

    Returns:
        ``{"rounds": n, "seconds": {name: [p20, median, p80]}, "ratios": {name: ratio}}``.
    """
    return {
        "rounds": len(times[mine]),
        "seconds": {name: np.percentile(own, (20, 50, 80)).tolist() for name, own in times.items()},
        "ratios": {
            name: median(other / own for other, own in zip(others, times[mine], strict=True))
            for name, others in times.items()
            if name != mine
        },
    }
