"""Runs ``groupnorm compare`` on the digits on a GPU, and keeps its table with the results of the device."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import groupnorm.lab
from groupnorm.bench.store import TRAINING, results


def main(folder: str, out: str, precision: str) -> None:
    """Compare, and keep mean errors in percent by norm and batch size, and the seconds it took."""
    begin = time.monotonic()
    result = groupnorm.lab.compare(device="cuda", precision=precision, seeds=1, out=out, progress=False)
    table = result.table.groupby(["norm", "batch_size"]).error.mean().round(2)
    errors = {f"{norm} {size}": None if error != error else error for (norm, size), error in table.items()}
    entry = {"errors": errors, "seconds": round(time.monotonic() - begin, 1)}
    results(Path(folder), "cuda", 1).put(TRAINING, {f"digits {precision}": entry})
    print(entry, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
