"""What the terminal shows: a line for each case when it is measured, the targets at the end."""

from __future__ import annotations

from collections.abc import Iterable

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from groupnorm.bench.bounds import EVERY, Bound
from groupnorm.bench.contenders import PEERS, TORCH
from groupnorm.bench.judge import MET, MISSED, NOT_MEASURED, Verdict
from groupnorm.bench.measure import BACKWARD, BOTH, FORWARD, WARM
from groupnorm.bench.steps import AFTER, BEFORE
from groupnorm.bench.store import Entry

BUSY = 0.2
"""Cores; more of them busy with other work, and a figure is called disturbed."""

_COLORS = {MET: "green", MISSED: "red", NOT_MEASURED: "dim"}  # by how a verdict begins
_SHORT = {FORWARD: "fwd", BACKWARD: "bwd", BOTH: "fwd+bwd"}


def case_line(key: str, entry: Entry) -> str:
    """Time, speed-up over each peer, GB/s and fraction of the copy's rate, by phase."""
    if entry["status"] != "measured":
        return f"[bold red]{entry['status']}[/] {escape(key)}: {escape(entry['reason'])}"
    parts = []
    for phase, name in _SHORT.items():
        if (timing := entry["timings"].get(phase)) is None:
            continue
        warm = entry["timings"].get(phase + WARM, timing)
        ratios = [_ratio(timing["ratios"][peer], peer) for peer in PEERS if peer in timing["ratios"]]
        copied = f"{warm['gbs']:5.1f} GB/s, {warm['of_copy']:4.0%} of copy" if "of_copy" in warm else ""
        low, middle, high = (milliseconds(s) for s in timing["seconds"]["groupnorm"])
        parts.append(f"{name} {middle} ms [dim]\\[{low}, {high}][/] {' '.join(ratios)} {copied}")
    missing = "".join(f"\n    {peer}: {escape(reason)}" for peer, reason in entry["out"].items())
    noise = "  [yellow]disturbed[/]" if disturbed(entry) else ""
    return f"{escape(key)}{noise}\n    " + "\n    ".join(parts) + missing


def model_line(key: str, entry: Entry) -> str:
    """Time and memory of each step, before and after."""
    if entry["status"] != "measured":
        return f"[bold red]{entry['status']}[/] {escape(key)}: {escape(entry['reason'])}"
    parts = []
    for step, timing in entry["timings"].items():
        before, after = (milliseconds(timing["seconds"][variant][1]) for variant in (BEFORE, AFTER))
        taken = " to ".join(megabytes(entry["memory"][step][variant]) for variant in (BEFORE, AFTER))
        parts.append(f"{step} {before} to {after} ms {_ratio(timing['ratios'][BEFORE], TORCH)}, {taken} MB")
    noise = "  [yellow]disturbed[/]" if disturbed(entry) else ""
    return f"{escape(key)}{noise}\n    " + "\n    ".join(parts)


def targets(verdicts: Iterable[Verdict]) -> Table:
    """A row for each target."""
    table = Table("target", "measured", "verdict", show_lines=True)
    for row in verdicts:
        color = next(color for verdict, color in _COLORS.items() if row.verdict.startswith(verdict))
        table.add_row(Text(row.target), Text(row.found), Text(row.verdict, style=color))
    return table


def what_bounds(rows: Iterable[Bound]) -> Table:
    """How many times as fast as torch: groupnorm, the parts of each case by themselves, and each byte once."""
    table = Table("phase", "bound by", title="What bounds it: times as fast as torch eager, in memory that is there")
    for name in ("cases", "groupnorm", "parts", "bytes"):
        table.add_column(name, justify="right")
    for row in rows:
        numbers = (f"{value:.2f}x" for value in (row.ours, row.reach, row.bytes))
        table.add_row(row.phase, row.what, str(row.cases), *numbers, end_section=row.what == EVERY)
    return table


def disturbed(entry: Entry) -> bool:
    """Whether other processes kept more than :data:`BUSY` cores busy during a timing."""
    return any((timing["others"] or 0) > BUSY for timing in entry.get("timings", {}).values())


def milliseconds(seconds: float) -> str:
    """Three digits of a time, such as "0.0123", "1.23" or "1234"."""
    value = seconds * 1000
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def megabytes(taken: int | None) -> str:
    """A peak of memory."""
    return NOT_MEASURED if taken is None else f"{taken / 1e6:.0f}"


def _ratio(value: float, peer: str) -> str:
    return f"[{'red' if value < 1 else 'green'}]{value:.2f}x[/] {peer}"
