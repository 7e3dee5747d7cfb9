"""Sweeps that are killed at chosen moments, and what is asked of the run folders that they leave."""

import contextlib
import io
import os
import random
import resource
import signal
import sys
import time
from pathlib import Path

import sklearn.datasets  # noqa: F401 (slow to import: once, before the processes part)
import torch

from groupnorm import cli
from groupnorm.environment import environment
from groupnorm.lab import compare
from groupnorm.lab.common import store
from groupnorm.lab.common.store import RunFolder
from groupnorm.lab.sweeps import local, runner, worker
from groupnorm.lab.training import seed_stacking
from lab.inline import schedule
from lab.synthetic import TIMING

environment()  # it asks git, which is slow; the processes that part from this one know the answer


def facts(folder):
    """All records of all cells without what a clock says."""
    found = {}
    for path in sorted((folder / "cells").iterdir()):
        told = RunFolder(folder).cell(path.name).records()
        found[path.name] = [{k: v for k, v in record.items() if k not in TIMING} for record in told]
    return found


def finished(folder):
    """The bytes of the records of each cell that has a result."""
    files = {path.parent.name: path.read_bytes() for path in folder.glob("cells/*/records.jsonl")}
    ends = {name: data for name, data in files.items() if data.endswith(b"}\n") and b'"kind": "end"' in data}
    return {name: data for name, data in ends.items() if b'"status": "crashed"' not in data}


def workers_of(folder):
    """Process numbers of the workers that serve a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # not a process, or one that just ended
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if b"groupnorm.lab.sweeps.worker" in words and str(folder).encode() in words:
                found.append(int(entry.name))
    return found


def epochs_recorded(folder):
    return sum(path.read_text().count('"kind": "epoch"') for path in folder.glob("cells/*/records.jsonl"))


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.02)


def live(folder, options, kill_at=None, seed=0):
    """compare() with its cells trained in this process, which is killed at the n-th line of what touches the disk.

    Seeds of one configuration are trained as one network wherever the bits allow. Leaves ``stacked`` beside the
    folder, a byte for each time that they were, and at its end ``lines``, the number of lines.
    """
    torch.set_num_threads(1)
    trial, together = seed_stacking._trial, seed_stacking.stack
    seed_stacking._WORTHWHILE_STEPS, seed_stacking._TRIAL_STEPS = 1, 2
    seed_stacking._trial = lambda runs: None if trial(runs) is None else (0.0, 1.0)  # the bits decide, not the time

    def stacked(runs):
        found = together(runs)
        with open(f"{folder}.stacked", "a") as file:
            file.write("x" if found else "")
        return found

    worker.stack = stacked
    runner.schedule = lambda cells, run, how: schedule(cells, run, how, how.worker_count)
    count = 0
    files = {module.__file__ for module in (store, worker, local, runner)} | {compare.__code__.co_filename}

    def lines(frame, event, argument):
        nonlocal count
        if event == "line":
            count += 1
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
        return lines

    sys.settrace(lambda frame, event, argument: lines if frame.f_code.co_filename in files else None)
    compare(out=folder, progress=False, **options)
    sys.settrace(None)
    Path(f"{folder}.lines").write_text(str(count))


def command(arguments, output, file_limit=None):
    """The command line with real workers, none of whose files may grow beyond ``file_limit`` bytes."""
    with open(output, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if file_limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    sys.stdout, sys.stderr = (io.TextIOWrapper(os.fdopen(fd, "wb"), write_through=True) for fd in (1, 2))
    sys.argv = ["groupnorm", *arguments]
    cli.main()


def moments(seed):
    """Where to kill: for ever a share of a whole run's lines, or of its time, and a number of workers."""
    draw = random.Random(seed)
    while True:
        yield draw.choice(["line", "line", "time"]), draw.uniform(0, 0.2), draw.choice([1, 2, 3, 8])
