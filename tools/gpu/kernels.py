"""Times cases on a GPU until the time is up, the most important first; each result is kept as soon as it is there."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

from groupnorm.bench import accuracy
from groupnorm.bench.cases import HUGE, LAYOUTS, SHAPES, Case, grid
from groupnorm.bench.contenders import OURS, PEERS, TORCH, contenders
from groupnorm.bench.measure import BOTH, FORWARD, measure
from groupnorm.bench.store import CASES, HOSTILE, KEPT, Entry, results

FIRST = ("vae", "video", "unet", "resnet")
SECONDS = 0.6
"""Of timing for each case; a round is short on a GPU."""


def order() -> Iterator[tuple[Case, list[str]]]:
    """Cases, and the peers that take part besides torch eager.

    Networks in bf16 with SiLU come first, then other activations and dtypes, so that "auto" can decide; then again
    with the peers that take long to compile; then the other shapes.
    """
    networks = [shape for family in FIRST for shape in SHAPES if shape.family == family]
    others = [shape for shape in SHAPES if shape not in networks]
    slow = [name for name in PEERS if name != TORCH]
    first = grid(networks, ["bf16"], LAYOUTS, ["silu"])
    yield from ((case, []) for case in first)
    for dtype, activation in (("bf16", "none"), ("fp32", "silu"), ("fp32", "none"), ("fp16", "silu"), ("fp16", "none")):
        yield from ((case, []) for case in grid(networks, [dtype], LAYOUTS, [activation]))
    yield from ((case, slow) for case in first)
    rest = grid(others, ["bf16", "fp32"], LAYOUTS, ["silu", "none", "relu"])
    yield from ((case, []) for case in (*rest, *grid(networks, ["bf16", "fp32"], LAYOUTS, ["relu"])))
    yield from ((case, []) for case in grid([HUGE], ["bf16"], LAYOUTS, ["silu"]))


def line(key: str, entry: Entry) -> str:
    """What is told of a case."""
    if entry["status"] != "measured":
        return f"{key}: {entry['status']}: {entry['reason']}"
    parts = []
    for phase in (FORWARD, BOTH):
        if phase in entry["timings"]:
            timing = entry["timings"][phase]
            ratios = ", ".join(f"{ratio:.2f} of {name}" for name, ratio in timing["ratios"].items())
            parts.append(f"{phase} {1e6 * timing['seconds'][OURS][1]:.1f} us, times {ratios}")
    return f"{key}: {'; '.join(parts)}"


def main(folder: str, seconds: str) -> None:
    """Measure what is not measured yet."""
    end = time.monotonic() + float(seconds) - 5
    found = results(Path(folder), "cuda", 1)
    refused = 0
    for case, peers in order():
        if time.monotonic() > end:
            break
        every = contenders(peers, "cuda")
        if found.has(CASES, case.key, every):
            continue
        entry = measure(case, every, "cuda", SECONDS)
        found.put(CASES, {case.key: entry})
        refused += entry["status"] == "refused"
        print(line(case.key, entry), flush=True)
    if time.monotonic() < end and not found.has(KEPT, "norm and SiLU"):
        found.put(HOSTILE, accuracy.hostile("cuda"))
        found.put(KEPT, {"norm and SiLU": accuracy.kept("cuda")})
    sys.exit(1 if refused else 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
