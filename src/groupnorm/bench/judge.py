"""The targets, and whether what was measured meets them; and every case that loses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from operator import ge, le
from typing import Any, NamedTuple

from groupnorm.bench.cases import HUGE, LAYOUTS, Case, grid, listed
from groupnorm.bench.check import ROUNDINGS
from groupnorm.bench.contenders import COPY, OURS, PEERS, TORCH
from groupnorm.bench.measure import BACKWARD, BOTH, FORWARD, PASSES, WARM
from groupnorm.bench.store import CASES, HOSTILE, KEPT, Results

_PUBLISHED = (
    ("H200", "1x128x20x256x256:32 bf16 contiguous silu", 200.0, 259.7),
    ("H100", "1x512x16x180x320:32 bf16 contiguous silu", 800.0, 987.5),
)
"""Part of a GPU's name, a case, and the microseconds that are wanted and that the fastest published kernel takes."""

MET, MISSED, NOT_MEASURED = "met", "missed", "not measured"
MET_SO_FAR, MISSED_SO_FAR = "met so far", "missed so far"
"""Of what is not measured completely, and may still change."""

Entry = dict[str, Any]
Measured = list[tuple[Case, Entry]]
"""Cases with the timings of each."""


class Verdict(NamedTuple):
    """A target and what was found.

    Attributes:
        target: what is wanted.
        found: what was measured, in words; "" where nothing was.
        verdict: one of those above.
    """

    target: str
    found: str
    verdict: str


class Loss(NamedTuple):
    """A case in which a peer is faster: ``ratio`` is its time over ours, below 1."""

    case: Case
    phase: str
    peer: str
    ratio: float


def judge(found: Results) -> list[Verdict]:
    """Each target of a device."""
    speed = _of_gpu(found) if found.machine["device"] == "cuda" else _of_cpu(found)
    return [*speed, *_promises(found)]


def known() -> dict[str, Case]:
    """The cases that are judged and shown, by key, in their order."""
    return {case.key: case for case in (*listed(), *grid([HUGE], ["bf16"], LAYOUTS, ["none", "relu", "silu"]))}


def measured(found: Results) -> Measured:
    """The cases with times, in their order."""
    entries = found[CASES]
    return [(case, entries[key]) for key, case in known().items() if entries.get(key, {}).get("status") == "measured"]


def not_measured(found: Results) -> dict[str, str]:
    """By key, why there are no times for a case that was tried."""
    return {key: f"{e['status']}: {e['reason']}" for key, e in found[CASES].items() if "reason" in e and key in known()}


def losses(found: Results) -> list[Loss]:
    """The cases in which a peer is faster, the worst first."""
    every = [
        Loss(case, phase, peer, entry["timings"][phase]["ratios"][peer])
        for case, entry in measured(found)
        for phase in (FORWARD, BACKWARD, BOTH)
        for peer in PEERS
        if peer in entry["timings"].get(phase, {}).get("ratios", {})
    ]
    return sorted((loss for loss in every if loss.ratio < 1), key=lambda loss: loss.ratio)


def geometric_mean(values: Iterable[float]) -> float:
    """Of ratios."""
    logs = [math.log(value) for value in values]
    return math.exp(math.fsum(logs) / len(logs))


def fits(case: Case, found: Results) -> bool:
    """Whether a group fits the L2; where its size is not known, no group does."""
    return case.group_bytes <= (found.machine["l2"] or 0)


def limit(timing: Entry, passes: int) -> float:
    """How many times as fast as torch a kernel is that moves the bytes that must move as a copy moves its own."""
    copy, torch = (timing["seconds"][name][1] for name in (COPY, TORCH))
    return float(torch / (copy * passes / PASSES[COPY]))


def _of_cpu(found: Results) -> Iterator[Verdict]:
    every, cases = measured(found), listed()
    yield _mean(every, cases, FORWARD, 2.0)
    yield _mean(every, cases, BOTH, 3.0)
    yield _least(every, cases, (FORWARD, BOTH), TORCH, 0.95, "no case is slower than torch eager by more than 5 %")
    for phase, activation, name, most in (
        (FORWARD, "none", "forward without activation", 1.5),
        (BOTH, "relu", "forward+backward with ReLU", 3.5),
    ):
        some = [c for c in cases if c.dtype == "fp32" and c.activation == activation and fits(c, found)]
        target = f"fp32 {name}, a group fits the L2: at most {most} copies into memory that is there"
        times = _ratios(every, some, (phase + WARM,), lambda timing: 1 / timing["ratios"][COPY])
        yield _extreme(target, times, len(some), "copies", partial(ge, most), largest=True)


def _of_gpu(found: Results) -> Iterator[Verdict]:
    cases = [case for case in listed() if case.dtype == "bf16" and case.activation == "silu"]
    every = measured(found)
    for phase, fitting, elsewhere in ((FORWARD, 85, 65), (BACKWARD, 75, 55)):
        for least, inside in ((fitting, True), (elsewhere, False)):
            some = [case for case in cases if fits(case, found) == inside]
            does = "fits" if inside else "does not fit"
            target = f"bf16 {phase} with SiLU, a group {does} the L2: at least {least} %"
            rates = _ratios(every, some, (phase,), lambda timing: 100 * timing["of_copy"])
            if some:
                yield _extreme(f"{target} of the copy's rate", rates, len(some), "%", partial(le, least))
    yield _mean(every, cases, BOTH, 3.0)
    yield _least(every, cases, (FORWARD, BACKWARD, BOTH), "compile", 1.0, "no case is slower than torch.compile")
    for name, key, most, published in _PUBLISHED:
        if name in found.machine["name"]:
            timing = found[CASES].get(key, {}).get("timings", {}).get(FORWARD)
            took = 1e6 * timing["seconds"][OURS][1] if timing else math.nan
            target = f"{key} forward: below {most:g} us, where the best published takes {published:g}"
            yield Verdict(target, f"{took:.1f} us" if timing else "", _verdict(int(bool(timing)), 1, took < most))


def _promises(found: Results) -> Iterator[Verdict]:
    tried = [e for key, e in found[CASES].items() if key in known() and "errors" in e]
    for target, entries, count in (
        ("every shape", tried, len(listed())),
        ("hostile input", list(found[HOSTILE].values()), len(found[HOSTILE])),
    ):
        wrong = [e["reason"] for e in entries if e.get("reason")]
        text = f"{len(entries) - len(wrong)} of {len(entries)} cases" if entries else ""
        text += f"; {wrong[0]}" if wrong else ""
        target = f"error on {target}: no larger than torch's, or than {ROUNDINGS} eps"
        yield Verdict(target, text, _verdict(len(entries), count, not wrong))
    kept = next(iter(found[KEPT].values()), None)
    for target, key, right, unit in (
        ("kept for the backward pass of norm and SiLU: one tensor of the input's size", "tensors", 1.0, " tensors"),
        ("output under bf16 autocast is bf16", "autocast", "bfloat16", ""),
    ):
        value = None if kept is None else kept[key]
        shown = value[OURS] if isinstance(value, dict) else value
        theirs = f", torch eager {value[TORCH]:g}" if isinstance(value, dict) else ""
        text = "" if shown is None else f"{shown:g}{unit}{theirs}" if isinstance(shown, float) else str(shown)
        yield Verdict(target, text, _verdict(int(kept is not None), 1, shown == right))


def _mean(every: Measured, cases: list[Case], phase: str, least: float) -> Verdict:
    ratios = _ratios(every, cases, (phase,), lambda timing: timing["ratios"][TORCH])
    target = f"{phase}: at least {least:g}x torch eager in the geometric mean"
    if not ratios:
        return Verdict(target, "", NOT_MEASURED)
    mean = geometric_mean(value for value, _ in ratios)
    text = f"{mean:.2f}x over {_count(ratios, len(cases))}"
    theirs = _ratios(every, cases, (phase + WARM,), lambda timing: timing["ratios"][TORCH])
    limits = _ratios(every, cases, (phase + WARM,), partial(limit, passes=PASSES[phase]))
    if theirs:
        warm, best = (geometric_mean(value for value, _ in found) for found in (theirs, limits))
        text += f"; {warm:.2f}x over {len(theirs)} in memory that is there, where a kernel that moves no byte twice, "
        text += f"at the copy's rate, would reach {best:.2f}x"
    verdict = _verdict(len(ratios), len(cases), mean >= least)
    unsure = verdict == MISSED and len(ratios) < len(cases)
    return Verdict(target, text, MISSED_SO_FAR if unsure else verdict)


def _least(
    every: Measured, cases: list[Case], phases: tuple[str, ...], peer: str, least: float, target: str
) -> Verdict:
    ratios = _ratios(every, cases, phases, lambda timing: timing["ratios"].get(peer))
    return _extreme(target, ratios, len(cases) * len(phases), "x", partial(le, least))


def _extreme(
    target: str,
    ratios: list[tuple[float, str]],
    count: int,
    unit: str,
    meets: Callable[[float], bool],
    *,
    largest: bool = False,
) -> Verdict:
    """A target that the worst case has to meet."""
    if not ratios:
        return Verdict(target, "", NOT_MEASURED)
    value, where = (max if largest else min)(ratios)
    unmet = sum(not meets(v) for v, _ in ratios)
    missed = f"; missed by {unmet}" if unmet else ""
    text = f"{value:.3g}{'' if unit in 'x%' else ' '}{unit} at worst, {where}; {_count(ratios, count)}{missed}"
    return Verdict(target, text, _verdict(len(ratios), count, not unmet))


def _ratios(
    every: Measured, cases: list[Case], phases: tuple[str, ...], of: Callable[[Entry], float | None]
) -> list[tuple[float, str]]:
    """A number of each timing that has it, with where it is from."""
    wanted = set(cases)
    return [
        (value, f"{case.key} {phase.removesuffix(WARM)}")
        for case, entry in every
        if case in wanted
        for phase in phases
        if phase in entry["timings"] and (value := of(entry["timings"][phase])) is not None
    ]


def _count(ratios: list[tuple[float, str]], count: int) -> str:
    return f"{len(ratios)} of {count} timings"


def _verdict(done: int, count: int, meets: bool) -> str:
    if not done:
        return NOT_MEASURED
    if not meets:
        return MISSED
    return MET if done >= count else MET_SO_FAR
