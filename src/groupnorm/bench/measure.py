"""One case: checked against float64, then timed."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from groupnorm.bench import memory
from groupnorm.bench.cases import Case
from groupnorm.bench.check import PEER_ROUNDINGS, ROUNDINGS, errors, refusal, right
from groupnorm.bench.contenders import COPY, OURS, TORCH, Contender, Norm, eager, ours
from groupnorm.bench.tensors import Tensors, tensors
from groupnorm.bench.timing import Clock, Run, Runs, clock_of, timed
from groupnorm.functional import group_norm

FORWARD, BACKWARD, BOTH = "forward", "backward", "forward+backward"
PASSES = {FORWARD: 2, BACKWARD: 3, BOTH: 5, COPY: 2}
"""How often at least an element is read or written."""

WARM = ", warm"
"""Added to a phase whose results lie in memory that was there before; only on a CPU does it make a difference."""

_TENSORS = 8  # of the size of the input that are alive at once: the most that torch's ReLU in training needs, and two
_TENSORS_KEPT = 16  # the same where memory is kept, in which what is freed leaves holes

Entry = dict[str, Any]
Ready = Callable[[], Run]


def measure(case: Case, every: dict[str, Contender], device: str, seconds: float) -> Entry:
    """The result of a case.

    Args:
        case: what is timed.
        every: who takes part, by name, of :func:`groupnorm.bench.contenders.contenders`.
        device: "cpu" or "cuda".
        seconds: of timing, for all phases together; warming up takes half as long again.

    Returns:
        ``status``: "measured"; "skipped" or "refused", with a ``reason``, and without any time. ``errors`` by
        contender and tensor, in eps; ``out``: peers that are not timed, with the reason; ``timings`` by phase, as of
        :func:`groupnorm.bench.timing.figures`; those of memory that is kept where there is enough of it.
    """
    needed, free = (_TENSORS if case.trains else _TENSORS // 2) * case.nbytes, memory.available(device) or math.inf
    if needed > free:
        return {"status": "skipped", "reason": f"takes {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free"}
    entry = _checked_and_timed(case, every, device, seconds)
    if device == "cpu" and entry["status"] == "measured" and memory.can_keep() and _TENSORS_KEPT * case.nbytes <= free:
        memory.release()
        entry["timings"] |= memory.in_kept_memory(kept_sets, case, seconds / 2)
    return entry


def _checked_and_timed(case: Case, every: dict[str, Contender], device: str, seconds: float) -> Entry:
    given = tensors(case, device)
    norms, found, out = _checked(case, every, given)
    if TORCH in out:
        return {"status": "skipped", "reason": f"torch has nothing to compare with: {out[TORCH]}"}
    entry: Entry = {"errors": found, "out": out}
    if OURS in out:
        return entry | {"status": "refused", "reason": out[OURS]}
    timings = _sets_of_cuda(case, norms, given, seconds) if device == "cuda" else _sets(case, norms, given, seconds / 2)
    return entry | {"status": "measured", "timings": timings}


def _checked(case: Case, every: dict[str, Contender], given: Tensors) -> tuple[dict[str, Norm], Entry, dict[str, str]]:
    """The norms that are right, the errors of all, and why the others are not timed."""
    expected = right(case, given)
    norms: dict[str, Norm] = {}
    found: Entry = {}
    out: dict[str, str] = {}
    for name in sorted(every, key=lambda name: name != TORCH):  # torch first: its errors are the measure
        if TORCH in out:
            break
        try:
            norm = every[name].make(case)
            found[name] = errors(case, norm, given, expected)
        except Exception as error:  # of any library; out of memory is one
            out[name] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            continue
        if reason := refusal(found[name], found[TORCH], ROUNDINGS if name == OURS else PEER_ROUNDINGS):
            out[name] = reason
        else:
            norms[name] = norm
    return norms, found, out


def _sets(case: Case, norms: dict[str, Norm], given: Tensors, seconds: float) -> Entry:
    """On a CPU each phase as users call it, against the peers."""
    clock, found = clock_of("cpu"), {}
    for phase, kind in _phases(case).items():
        with torch.set_grad_enabled(phase != FORWARD):
            runs = {name: kind(norm, given) for name, norm in norms.items()}
            found[phase] = _figures(case, phase, runs, clock, seconds / len(_phases(case)))
        memory.release()
    return found


def kept_sets(case: Case, seconds: float) -> Entry:
    """On a CPU each phase against torch and a copy, where memory is kept: of :func:`memory.in_kept_memory`."""
    given, clock, found = tensors(case, "cpu"), clock_of("cpu"), {}
    buffer = torch.empty_like(given.x).detach()
    for phase, kind in _phases(case).items():
        mine = kind(ours(case), given) if phase != FORWARD else _into(case, given, buffer)
        with torch.set_grad_enabled(phase != FORWARD):
            runs = {COPY: _copy(given.x, buffer), TORCH: kind(eager(case), given), OURS: mine}
            found[phase + WARM] = _figures(case, phase, runs, clock, seconds / len(_phases(case)))
    del given, buffer, runs, mine
    memory.release()
    return found


def _phases(case: Case) -> dict[str, Callable[[Norm, Tensors], Ready]]:
    return {FORWARD: _forward, BOTH: _both} if case.trains else {FORWARD: _forward}


def _sets_of_cuda(case: Case, norms: dict[str, Norm], given: Tensors, seconds: float) -> Entry:
    """Each phase against the peers and a copy: PyTorch keeps a GPU's memory, so it was all there before."""
    clock, each = clock_of("cuda"), seconds / (3 if case.trains else 1)
    copy = {COPY: _copy(given.x, torch.empty_like(given.x).detach())}

    def timed(phase: str, kind: Callable[[Norm, Tensors], Ready]) -> Entry:
        runs = copy | {name: kind(norm, given) for name, norm in norms.items()}
        return {phase: _figures(case, phase, runs, clock, each)}

    with torch.no_grad():
        found = timed(FORWARD, _forward)
    return found | timed(BACKWARD, _backward) | timed(BOTH, _both) if case.trains else found


def _figures(case: Case, phase: str, runs: Runs, clock: Clock, seconds: float) -> Entry:
    """Those of :func:`groupnorm.bench.timing.timed`, and of our own:

    ``gbs``, the bytes that at least are moved in GB/s; ``of_copy``, the same as a fraction of what the copy moves.
    """
    passes = PASSES[phase]
    found = timed(runs, clock, seconds, OURS)
    found["gbs"] = passes * case.nbytes / found["seconds"][OURS][1] / 1e9
    if COPY in runs:
        found["of_copy"] = passes / PASSES[COPY] * found["ratios"][COPY]
    return found


def _forward(norm: Norm, given: Tensors) -> Ready:
    return lambda: partial(norm, *given[:3])


def _both(norm: Norm, given: Tensors) -> Ready:
    inputs = given[:3]
    return lambda: lambda: torch.autograd.grad(norm(*inputs), inputs, given.dy)


def _backward(norm: Norm, given: Tensors) -> Ready:
    inputs = given[:3]

    def ready() -> Run:
        y = norm(*inputs)
        return lambda: torch.autograd.grad(y, inputs, given.dy)

    return ready


def _into(case: Case, given: Tensors, out: Tensor) -> Ready:
    x, weight, bias, _ = given
    return lambda: partial(group_norm, x, case.shape.groups, weight, bias, activation=case.function, out=out)


def _copy(x: Tensor, buffer: Tensor) -> Ready:
    source = x.detach()
    return lambda: partial(buffer.copy_, source)
