"""The page of all results: a pure view of the files, which says of what is not there that it was not measured."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

import jinja2

from groupnorm.bench import calls, rates, show
from groupnorm.bench.bounds import bounds
from groupnorm.bench.contenders import OURS, PEERS, TORCH
from groupnorm.bench.figure import draw
from groupnorm.bench.judge import NOT_MEASURED, Entry, judge, known, losses, measured, not_measured
from groupnorm.bench.measure import BACKWARD, BOTH, FORWARD, WARM
from groupnorm.bench.networks import NETWORKS
from groupnorm.bench.steps import AFTER, BEFORE, FREE
from groupnorm.bench.store import CALLS, CASES, HOSTILE, MODELS, RATES, TESTS, TRAINING, TRITON, Results
from groupnorm.files import write_atomically
from groupnorm.lab.plots.style import encode

_GRADIENTS = ("dx", "dweight", "dbias")
_KINDS = {"cpu": "CPU", "cuda": "GPU"}

_templates = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    undefined=jinja2.StrictUndefined,
)


def write(path: Path, every: Sequence[Results]) -> None:
    """Write the page, and beside it a picture for each device that has cases.

    Args:
        path: of the page, such as docs/speed.md; its pictures are docs/speed-cpu.png and the like.
        every: the results of all devices.
    """
    devices = [_device(found, path) for found in every]
    for found, device in zip(every, devices, strict=True):
        if device["picture"]:
            write_atomically(path.with_name(device["picture"]), encode(draw(found), "png"))
    write_atomically(path, render(devices).encode())


def render(devices: Sequence[dict[str, Any]]) -> str:
    """The page as Markdown; a kind of device without results is said to be not measured."""
    kinds = {kind: [d for d in devices if d["kind"] == device] for device, kind in _KINDS.items()}
    return _templates.get_template("page.md").render(kinds=kinds, not_measured=NOT_MEASURED)


def _device(found: Results, path: Path) -> dict[str, Any]:
    facts, every = found.machine, measured(found)
    stamps = [e["stamp"] for section in (CASES, MODELS) for e in found[section].values()]
    others = [t["others"] for _, e in every for t in e["timings"].values() if t["others"] is not None]
    dates = sorted(e["date"] for section in (CASES, MODELS) for e in found[section].values())
    picture = f"{path.stem}-{_KINDS[facts['device']].lower()}.png" if every else ""
    return {
        "kind": facts["device"],
        "facts": facts,
        "versions": {key: _distinct(stamps, key) for key in ("torch", "groupnorm", "revision", "kernels")},
        "dates": " to ".join(dict.fromkeys((dates[0], dates[-1]))) if dates else "",
        "others": {"median": median(others), "most": max(others)} if others else None,
        "verdicts": judge(found),
        "picture": picture,
        "tried": sum(key in known() for key in found[CASES]),
        "cases": len(every),
        "losses": [{"where": x.case.key, "phase": x.phase, "peer": PEERS[x.peer].title, "ratio": x.ratio}
                   for x in losses(found)],
        "out": not_measured(found),
        "rates": [_rate(kind, found[RATES][kind]) for kind in rates.KINDS if kind in found[RATES]],
        "bounds": bounds(found),
        "calls": [row for entry in found[CALLS].values() for row in _calls(entry)],
        "hostile": _hostile(found),
        "tables": _tables(every),
        "models": [_model(key, entry) for key, entry in found[MODELS].items()],
        "tests": found[TESTS].get(TRITON),
        "training": [_training(key, entry) for key, entry in found[TRAINING].items()],
    }  # fmt: skip


def _tables(every: list[tuple[Any, Entry]]) -> list[dict[str, Any]]:
    """A table for each shape: a row for each case, the same columns for each phase."""
    tables = []
    for shape, cases in groupby(every, key=lambda row: row[0].shape):
        rows = list(cases)
        phases = [phase for phase in (FORWARD, BACKWARD, BOTH) if phase in rows[0][1]["timings"]]
        peers = [peer for peer in PEERS if any(peer in e["timings"][FORWARD]["ratios"] for _, e in rows)]
        columns = [*(PEERS[peer].title for peer in peers), "of copy"]
        tables.append(
            {
                "title": f"{shape.where}: {'×'.join(map(str, shape.size))}, {shape.groups} groups",
                "head": ["case", *(name for phase in phases for name in (f"{phase}, ms", *columns))],
                "rows": [_row(case, entry, phases, peers) for case, entry in rows],
            }
        )
    return tables


def _row(case: Any, entry: Entry, phases: list[str], peers: list[str]) -> list[str]:
    mark = " \\*" if show.disturbed(entry) else ""
    cells = [f"{case.dtype} {case.layout} {case.activation}{mark}"]
    for phase in phases:
        timing = entry["timings"].get(phase)
        if timing is None:
            cells += ["-"] * (2 + len(peers))
            continue
        warm = entry["timings"].get(phase + WARM, timing)
        cells.append(show.milliseconds(timing["seconds"][OURS][1]))
        cells += [ratio(timing["ratios"].get(peer)) for peer in peers]
        cells.append(f"{warm['of_copy']:.0%}" if "of_copy" in warm else "-")
    return cells


def _model(key: str, entry: Entry) -> dict[str, Any]:
    name, dtype = key.split()
    title = f"{NETWORKS[name].title}, {dtype}"
    if entry["status"] != "measured":
        return {"title": title, "reason": f"{entry['status']}: {entry['reason']}", "steps": []}
    steps = [
        {
            "step": step,
            "seconds": [show.milliseconds(timing["seconds"][variant][1]) for variant in (BEFORE, AFTER)],
            "ratio": ratio(timing["ratios"][BEFORE]),
            "limit": ratio(timing["ratios"][BEFORE] / timing["ratios"][FREE]),
            "memory": [show.megabytes(entry["memory"][step][variant]) for variant in (BEFORE, AFTER)],
        }
        for step, timing in entry["timings"].items()
    ]
    return {"title": title + (" \\*" if show.disturbed(entry) else ""), "reason": "", "steps": steps}


def _training(key: str, entry: Entry) -> dict[str, Any]:
    """Errors in percent of ``groupnorm compare``: a row for each norm, a column for each batch size."""
    errors = {tuple(name.split()): value for name, value in entry["errors"].items()}
    sizes = sorted({size for _, size in errors}, key=int, reverse=True)
    rows = [
        [norm, *("undefined" if (value := errors.get((norm, size))) is None else f"{value:.1f}" for size in sizes)]
        for norm in dict.fromkeys(norm for norm, _ in errors)
    ]
    return {"title": key, "seconds": entry["seconds"], "head": ["norm", *sizes], "rows": rows}


def _calls(entry: Entry) -> list[dict[str, str]]:
    """Microseconds of each phase, by contender."""
    timings = entry["timings"]
    return [
        {"title": title} | {phase: f"{timing['seconds'][name][1] * 1e6:.0f}" for phase, timing in timings.items()}
        for name, title in calls.TITLES.items()
        if name in timings[FORWARD]["seconds"]
    ]


def _rate(kind: str, entry: Entry) -> list[str]:
    """Microseconds of a call and nanoseconds of an element in each phase."""
    found = (rates.rate(entry, phase) for phase in (FORWARD, BOTH))
    return [kind, *(text for each in found for text in (f"{each.call * 1e6:.0f}", f"{each.element * 1e9:.2f}"))]


def _hostile(found: Results) -> list[dict[str, Any]]:
    """For each kind of input the largest errors of ours and of torch's, as text: of the output, of the gradients."""
    rows = []
    for kind, entries in groupby(sorted(found[HOSTILE].items()), key=lambda item: item[0].partition(": ")[0]):
        each = [entry["errors"] for _, entry in entries]
        errors = [_worst(each, who, names) for names in (("y",), _GRADIENTS) for who in (OURS, TORCH)]
        rows.append({"kind": kind, "count": len(each), "errors": errors})
    return rows


def _worst(errors: list[dict[str, dict[str, float | None]]], who: str, names: Sequence[str]) -> str:
    values = [found[who][name] for found in errors for name in names]
    return "not finite" if None in values else f"{max(v for v in values if v is not None):.3g}"


def _distinct(stamps: list[dict[str, Any]], key: str) -> str:
    return ", ".join(dict.fromkeys(str(stamp[key]) for stamp in stamps if stamp[key] is not None))


def ratio(value: float | None) -> str:
    """How many times as fast, bold where it is slower; "-" where it was not measured."""
    if value is None:
        return "-"
    text = f"{value:.2f}×"
    return f"**{text}**" if value < 1 else text
