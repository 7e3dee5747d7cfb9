"""What was measured on a GPU, as the data by which "auto" chooses there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from groupnorm.bench.cases import ACTIVATIONS, DTYPES, LAYOUTS, SHAPES, Case, grid
from groupnorm.bench.contenders import TORCH
from groupnorm.bench.judge import geometric_mean
from groupnorm.bench.measure import BOTH, FORWARD
from groupnorm.bench.store import CASES, TESTS, TRITON, Results, same
from groupnorm.files import write_atomically
from groupnorm.ops.triton.measured import FILE, kind

FEWEST = 3
"""Shapes without which a kind of call is not decided."""


def decided(found: Results) -> dict[str, Any] | None:
    """The entry of a GPU in :mod:`groupnorm.ops.triton.measured`; None while its tests have not run to their end.

    A case that was refused counts as a test that failed: there the kernels are wrong. What was measured with other
    kernels or another PyTorch than the tests does not count.
    """
    tests = found[TESTS].get(TRITON)
    if tests is None or not tests["whole"]:
        return None
    of_same = {key: entry for key, entry in found[CASES].items() if same(entry["stamp"], tests["stamp"])}
    refused = sum(entry["status"] == "refused" for entry in of_same.values())
    ratios: dict[str, dict[str, list[float]]] = {}
    for case in grid(SHAPES, list(DTYPES), LAYOUTS, ACTIVATIONS):
        timings = of_same.get(case.key, {}).get("timings", {})
        for phase in (FORWARD, BOTH):
            if phase in timings:
                of_kind = ratios.setdefault(_kind(case), {}).setdefault(phase, [])
                of_kind.append(timings[phase]["ratios"][TORCH])
    facts, stamp = found.machine, tests["stamp"]
    return {
        "device": facts["name"],
        "driver": facts["driver"],
        "torch": stamp["torch"],
        "triton": facts["triton"],
        "revision": stamp["revision"],
        "date": tests["date"],
        "passed": tests["passed"],
        "failed": len(tests["failed"]) + refused,
        "speed": {
            name: {phase: round(geometric_mean(v), 2) for phase, v in phases.items() if len(v) >= FEWEST}
            for name, phases in sorted(ratios.items())
        },
    }


def write(found: Results, path: Path = FILE) -> bool:
    """Put the entry of a GPU into the file that "auto" reads; whether there is one."""
    entry = decided(found)
    if entry is None:
        return False
    entries = json.loads(path.read_text()) | {found.machine["architecture"]: entry}
    write_atomically(path, json.dumps(entries, indent=1, sort_keys=True).encode() + b"\n")
    return True


def _kind(case: Case) -> str:
    return kind(str(case.torch_dtype).removeprefix("torch."), case.layout.replace("-", " "), case.function)
