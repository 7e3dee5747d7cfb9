"""Where the kernels were measured, and what came of it: what "auto" decides by is this data.

``measured.json`` has an entry for each architecture of :func:`groupnorm.ops.gpu.architecture`, which ``make gpu``
writes::

    {"sm_90": {"device": "NVIDIA H200", "driver": "580.159", "torch": "2.11.0", "triton": "3.6.0",
               "revision": "0123456789ab", "date": "2026-12-31", "passed": 512, "failed": 0,
               "speed": {"bfloat16 contiguous activation": {"forward": 3.2, "forward+backward": 2.9}}}}

``speed`` is how many times as fast as ATen they were, in the geometric mean over the shapes of the benchmark.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from groupnorm.ops.spec import Spec

FILE = Path(__file__).with_name("measured.json")

FORWARD, BOTH = "forward", "forward+backward"

_ASK = "ask for it with backend='triton', or set GROUPNORM_BACKEND=triton"


@functools.cache
def entries() -> dict[str, Any]:
    """What was measured, by architecture."""
    found: dict[str, Any] = json.loads(FILE.read_text())
    return found


def kind(dtype: str, layout: str, activation: str | None) -> str:
    """The key of a call's speed, such as "bfloat16 channels last activation" or "float32 contiguous plain"."""
    return f"{dtype} {layout} {'plain' if activation is None else 'activation'}"


def drawback(spec: Spec) -> str:
    """Why "auto" takes ATen's kernels on this GPU; "" where ours were measured to be right and faster."""
    entry = entries().get(spec.gpu or "")
    if entry is None:
        return f"it has not been measured on {spec.gpu or 'such a GPU'} yet: {_ASK}"
    if entry["failed"]:
        return f"{entry['failed']} of its tests failed on {entry['device']}"
    name = kind(str(spec.dtype).removeprefix("torch."), spec.layout, spec.activation)
    speed = entry["speed"].get(name, {}).get(BOTH if spec.needs_grad else FORWARD)
    if speed is None:
        return f"it has not been measured on {entry['device']} for {name} yet: {_ASK}"
    if speed <= 1:
        return f"ATen was {1 / speed:.2f} times as fast on {entry['device']} for {name}"
    return ""
