"""Times whole networks before and after ``groupnorm.accelerate_`` on a GPU, until the time is up."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from groupnorm.bench.networks import absence, names_on
from groupnorm.bench.steps import measure
from groupnorm.bench.store import MODELS, results


def main(folder: str, seconds: str) -> None:
    """Measure what is not measured yet, in bf16 first."""
    end = time.monotonic() + float(seconds) - 5
    found = results(Path(folder), "cuda", 1)
    for dtype in ("bf16", "fp32"):
        for name in names_on("cuda"):
            key = f"{name} {dtype}"
            if time.monotonic() > end:
                return
            if missing := absence(name):
                print(f"{name} is left out: {missing}", flush=True)
            elif not found.has(MODELS, key):
                entry = measure(name, dtype, "cuda", 1, 4.0)
                found.put(MODELS, {key: entry})
                print(f"{key}: {entry['status']} {entry.get('reason') or entry['timings']}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
