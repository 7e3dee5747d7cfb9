"""What is done on a GPU, the most important first. Each part is a process of its own, so that none ends the others."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
_OF_COMPARE = ("pydantic", "typer", "rich", "pandas", "sklearn", "plotly")
_TESTS = ("test_cuda.py", "test_triton.py", "test_triton_plan.py", "test_measured.py")


class Stage(NamedTuple):
    """A part of the work.

    Attributes:
        name: of its log.
        title: what it does.
        command: that does it; "{seconds}" stands for the time it has.
        most: seconds.
        environment: besides that of this process.
        lacks: why it cannot be done here; "" where it can.
    """

    name: str
    title: str
    command: Sequence[str]
    most: float
    environment: dict[str, str]
    lacks: str = ""


def stages(gpu: str, results: Path, scratch: Path) -> list[Stage]:
    """All of them, in their order.

    Args:
        gpu: its name; "" where there is none, and Triton's interpreter takes its place in the tests.
        results: folder of what is kept.
        scratch: folder of logs and of what is not.
    """
    source = str(ROOT / "src")
    ours = {"PYTHONPATH": source, "PYTHONUNBUFFERED": "1", "TRITON_INTERPRET": "0" if gpu else "1"}
    kernels = ours | {"GROUPNORM_BACKEND": "triton"}
    no_gpu = "" if gpu else "torch sees no GPU"
    python = [sys.executable, "-W", "ignore"]
    tests = [sys.executable, "-m", "pytest", "-c", str(HERE / "pytest.ini"), "--rootdir", str(ROOT), "-p", "outcomes"]
    if gpu and importlib.util.find_spec("xdist"):
        tests += ["-n", "8"]  # most of the time the CPU compiles kernels
    if gpu and importlib.util.find_spec("pytest_timeout"):
        tests += ["--timeout", "90", "--timeout-method", "thread"]  # a kernel that hangs takes no other test along
    outcomes = {"OUTCOMES": str(scratch / "tests.jsonl"), "PYTHONPATH": os.pathsep.join((source, str(HERE)))}
    sanitizer = shutil.which("compute-sanitizer")
    memcheck = [sanitizer or "compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9"]
    told = [str(results), "{seconds}"]
    every = [
        Stage(
            "tests",
            "the backend against the definition",
            [*tests, *(str(ROOT / "tests" / "ops" / name) for name in _TESTS)],
            240 if gpu else 540,
            ours | outcomes,
        ),
        Stage("bench", "times against others", [*python, str(HERE / "kernels.py"), *told], 150, kernels, no_gpu),
        Stage("models", "whole models", [*python, str(HERE / "models.py"), *told], 60, kernels, no_gpu),
        Stage(
            "sanitizer",
            "reads and writes beside the tensors",
            [*memcheck, *python, str(HERE / "small.py")],
            30,
            kernels,
            no_gpu or ("" if sanitizer else "compute-sanitizer is not on the PATH"),
        ),
    ]
    lacking = [name for name in _OF_COMPARE if not importlib.util.find_spec(name)]
    for precision in ("bf16", "fp32"):
        every.append(
            Stage(
                f"compare-{precision}",
                f"groupnorm compare on the digits, {precision}",
                [*python, str(HERE / "compare.py"), str(results), str(scratch / f"compare-{precision}"), precision],
                60,
                kernels,
                no_gpu or (f"{', '.join(lacking)} not installed" if lacking else ""),
            )
        )
    return every
