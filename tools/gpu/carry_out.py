"""Runs the stages one after the other within a limit, and ends whatever is left when it is reached."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Event
from typing import NamedTuple

from stages import ROOT, Stage

LEAST = 5.0
"""Seconds that are worth beginning a stage for."""

_GRACE = 5.0  # seconds to end by itself
_LOOK = 0.05  # seconds between two looks at a process

Execute = Callable[[Sequence[str], Mapping[str, str], float, Path], int | None]
"""``execute(command, environment, seconds, log)`` is the exit code; None where the time was up."""


class Outcome(NamedTuple):
    """What became of a stage.

    Attributes:
        stage: which.
        status: "done", "failed", "cut", "skipped" or "not reached".
        remark: the exit code, the time, or why it was skipped.
    """

    stage: Stage
    status: str
    remark: str


def carry_out(
    stages: Sequence[Stage],
    limit: float,
    scratch: Path,
    clock: Callable[[], float],
    execute: Execute,
    tell: Callable[[Outcome], None],
    stop: Event,
) -> list[Outcome]:
    """Run stages; what one does not need of its time is there for those after it.

    Args:
        stages: in their order.
        limit: seconds for all of them.
        scratch: folder of a log for each.
        clock: seconds.
        execute: runs one.
        tell: is called with each outcome as soon as it is known.
        stop: ends the work once it is set.
    """
    begin = clock()
    outcomes = []
    for stage in stages:
        if stop.is_set():
            break
        left = limit - (clock() - begin)
        if stage.lacks:
            outcome = Outcome(stage, "skipped", stage.lacks)
        elif left < LEAST:
            outcome = Outcome(stage, "not reached", f"the limit is {limit:.0f} s")
        else:
            seconds = min(stage.most, left)
            command = [part.replace("{seconds}", f"{seconds:.0f}") for part in stage.command]
            started = clock()
            code = execute(command, stage.environment, seconds, scratch / f"{stage.name}.log")
            spent = f"{clock() - started:.0f} s"
            status = "cut" if code is None else "failed" if code else "done"
            outcome = Outcome(stage, status, f"exit code {code} after {spent}" if code else spent)
        outcomes.append(outcome)
        tell(outcome)
    return outcomes


def execute(
    command: Sequence[str], environment: Mapping[str, str], seconds: float, log: Path, stop: Event
) -> int | None:
    """Run a command, with all that it starts, for at most so many seconds or until ``stop`` is set."""
    end = time.monotonic() + seconds
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        while process.poll() is None and time.monotonic() < end and not stop.is_set():
            time.sleep(_LOOK)
        code = process.poll()
        _end(process)
        return code


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask a process and its children to end, and then make them."""
    for number, wait in ((signal.SIGTERM, _GRACE), (signal.SIGKILL, None)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(wait)
        except subprocess.TimeoutExpired:
            continue
