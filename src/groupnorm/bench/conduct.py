"""Measures what is not measured yet, and keeps every result as soon as it is there."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from groupnorm.bench import accuracy, calls, judge, networks, rates, show, steps
from groupnorm.bench.cases import Case
from groupnorm.bench.contenders import PEERS, contenders
from groupnorm.bench.machine import watching_others
from groupnorm.bench.measure import measure
from groupnorm.bench.store import CALLS, CASES, HOSTILE, KEPT, MODELS, RATES, Entry, Results
from groupnorm.ops import cpu

Job = tuple[str, float, Callable[[], Entry]]
"""Key, weight (about seconds) and what makes the entry."""

_COMPILES = 8.0  # seconds
_PER_GIGABYTE = 110.0  # seconds of a case of that size, beyond the time it is given; on two cores
_LONGEST_WAIT = 600.0  # seconds for a quiet machine
_LOOK = 1.0  # seconds that tell whether it is quiet


class How(NamedTuple):
    """How measurements are made.

    Attributes:
        seconds: of timing for each.
        fresh: measure again what is there.
        quiet: before each wait until no one else works on the machine, and measure again what was disturbed.
        console: shows a line for each.
    """

    seconds: float
    fresh: bool
    quiet: bool
    console: Console

    def lacks(self, found: Results, section: str, key: str, names: Iterable[str] = ()) -> bool:
        """Whether something is to be measured."""
        disturbed = self.quiet and show.disturbed(found[section].get(key, {}))
        return self.fresh or disturbed or not found.has(section, key, names)


def run_cases(found: Results, cases: Sequence[Case], peers: list[str], how: How) -> None:
    """Measure cases, and before the listed ones what a call costs and what is promised besides speed.

    Args:
        found: receives the entries.
        cases: what is timed.
        peers: by name; those that cannot run on this device are named and left out.
        how: they are measured.
    """
    device = found.machine["device"]
    every = contenders(peers, device)
    for name in peers:
        if name not in every:
            how.console.print(f"{PEERS[name].title} does not take part: {PEERS[name].absence(device)}", highlight=False)
    promised = any(case in judge.known().values() for case in cases)
    if promised and how.lacks(found, KEPT, "norm and SiLU"):
        how.console.print("Hostile input, and what is kept for the backward pass ...")
        found.put(HOSTILE, accuracy.hostile(device))
        found.put(KEPT, {"norm and SiLU": accuracy.kept(device)})
    if promised and device == "cpu":
        _run_parts(found, how)
    cost = 1.5 * how.seconds + _COMPILES * ("compile" in every)
    jobs: list[Job] = [
        (case.key, cost + case.nbytes / 1e9 * _PER_GIGABYTE, partial(measure, case, every, device, how.seconds))
        for case in cases
        if how.lacks(found, CASES, case.key, every)
    ]
    _carry_out(found, CASES, jobs, len(cases) - len(jobs), how, show.case_line)


def _run_parts(found: Results, how: How) -> None:
    """What a call costs, and the kernels where there are some."""
    parts = [(CALLS, "smallest", partial(calls.measure, how.seconds))]
    if not cpu.unavailable():
        parts += [(RATES, kind, partial(rates.measure, kind, how.seconds / 3)) for kind in rates.KINDS]
    missing = [part for part in parts if how.lacks(found, *part[:2])]
    if missing:
        how.console.print("What a call costs, and the kernels without memory ...")
    for section, key, make in missing:
        if how.quiet:
            _wait_for_quiet()
        found.put(section, {key: make()})


def run_models(found: Results, keys: Sequence[str], how: How) -> None:
    """Measure whole networks, before and after.

    Args:
        found: receives the entries.
        keys: network and dtype, such as "resnet50 bf16".
        how: they are measured.
    """
    device, threads = found.machine["device"], found.machine.get("threads", torch.get_num_threads())
    jobs: list[Job] = []
    before = 0
    for name, dtype in (key.split() for key in keys):
        if missing := networks.absence(name):
            how.console.print(f"{name} is left out: {missing}", highlight=False)
        elif how.lacks(found, MODELS, f"{name} {dtype}"):
            jobs.append((f"{name} {dtype}", 60.0, partial(steps.measure, name, dtype, device, threads, how.seconds)))
        else:
            before += 1
    _carry_out(found, MODELS, jobs, before, how, show.model_line)


def _carry_out(
    found: Results, section: str, jobs: list[Job], before: int, how: How, line: Callable[[str, Entry], str]
) -> None:
    """Do jobs one after the other; an interrupt loses the one that runs."""
    if before:
        how.console.print(f"{before} of {before + len(jobs)} were measured before.", highlight=False)
    left, spent, done = sum(weight for _, weight, _ in jobs), 0.0, 0.0
    columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TextColumn("{task.fields[left]}"))
    with Progress(*columns, console=how.console, transient=True) as progress, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the compiler and the libraries, between the lines of the table
        task = progress.add_task("", total=len(jobs), left="")
        for key, weight, make in jobs:
            minutes = (left / 60) * (spent / done if done else 1)
            progress.update(task, description=key, left=f"about {minutes:.0f} min left")
            if how.quiet:
                _wait_for_quiet()
            begin = time.monotonic()
            entry = make()
            found.put(section, {key: entry})
            progress.console.print(line(key, entry), highlight=False, soft_wrap=True)
            progress.advance(task)
            spent, done, left = spent + time.monotonic() - begin, done + weight, left - weight


def _wait_for_quiet() -> None:
    """Until nobody else works on the machine; not for ever, and what is disturbed then is told to be so."""
    end = time.monotonic() + _LONGEST_WAIT
    while time.monotonic() < end:
        with watching_others() as found:
            time.sleep(_LOOK)
        if (found["others"] or 0) <= show.BUSY:
            return
