"""``make gpu``: test the Triton kernels on the GPU of this machine and measure them there, within a limit.

It needs no network, and no package but torch, triton, pytest, hypothesis and numpy: groupnorm is used as it lies here.
What it finds goes to ``bench/results``, for ``groupnorm bench page``, and, once all tests have run, to
``src/groupnorm/ops/triton/measured.json``, by which ``backend="auto"`` decides. Logs go to ``build/gpu``. Another run
measures what is missing. Without a GPU the tests run in Triton's interpreter, and all else is skipped.

Exit code: 0; 1 when a test failed, was cut, or a stage failed; 130 when interrupted, and what is there is kept.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

from carry_out import Outcome, carry_out, execute
from outcomes import read
from stages import ROOT, stages


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="make gpu", description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=480.0, help="of all together (default: 480)")
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results", help="folder of what is kept")
    parser.add_argument("--scratch", type=Path, default=ROOT / "build" / "gpu", help="folder of logs")
    options = parser.parse_args()
    stop = threading.Event()  # and no exception, which an import or a destructor that is under way may swallow
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    gpu = _gpu()
    print(f"GPU: {gpu or 'none; the tests run in the interpreter of Triton'}", flush=True)
    options.scratch.mkdir(parents=True, exist_ok=True)
    (options.scratch / "tests.jsonl").unlink(missing_ok=True)
    outcomes: list[Outcome] = []

    def tell(outcome: Outcome) -> None:
        outcomes.append(outcome)
        print(f"{outcome.stage.name:<13} {outcome.status:<11} {outcome.remark}", flush=True)
        if outcome.stage.name == "tests":
            _tell_tests(read(options.scratch / "tests.jsonl"))

    todo = stages(gpu, options.results, options.scratch)
    carry_out(todo, options.seconds, options.scratch, time.monotonic, partial(execute, stop=stop), tell, stop)
    if stop.is_set():
        print("Interrupted.", flush=True)
    tests = read(options.scratch / "tests.jsonl")
    if gpu:
        _keep(options.results, tests)
    print(f"Logs: {options.scratch}", flush=True)
    if stop.is_set():
        return 130
    wrong = tests["failed"] or not tests["whole"] or any(outcome.status == "failed" for outcome in outcomes)
    return 1 if wrong else 0


def _gpu() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""


def _tell_tests(tests: dict[str, Any]) -> None:
    ended = "all ended" if tests["whole"] else "cut before the last"
    print(f"    {tests['passed']} passed, {len(tests['failed'])} failed; {ended}", flush=True)
    for name in tests["failed"][:20]:
        print(f"    failed: {name}", flush=True)
    for reason, count in tests["skipped"].items():
        print(f"    {count} skipped: {reason}", flush=True)


def _keep(folder: Path, tests: dict[str, Any]) -> None:
    """Put the tests beside what was measured, and decide by both what "auto" takes."""
    sys.path.insert(0, str(ROOT / "src"))
    import torch

    from groupnorm.bench import decide
    from groupnorm.bench.store import TESTS, TRITON, results

    found = results(folder, "cuda", torch.get_num_threads())
    found.put(TESTS, {TRITON: tests})
    print(f"Results: {found.path}", flush=True)
    if decide.write(found):
        print(f'By these "auto" decides: {decide.FILE}', flush=True)
    else:
        print('What "auto" takes stays as it is, since not all tests have run.', flush=True)


if __name__ == "__main__":
    sys.exit(main())
