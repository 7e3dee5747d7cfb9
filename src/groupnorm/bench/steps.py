"""A network before and after ``groupnorm.accelerate_``: errors, times and memory of inference and a training step."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import groupnorm
from groupnorm.bench.cases import DTYPES
from groupnorm.bench.memory import peak_of
from groupnorm.bench.networks import build, run
from groupnorm.bench.timing import Run, clock_of, timed

BEFORE, AFTER, FREE = "before", "after", "free"
"""The network as it was, accelerated, and with norms that do nothing: that is as fast as any norm can make it."""

INFERENCE, TRAINING = "inference", "training step"

ROUNDINGS = 64
"""Eps of the dtype that a network may be off after it, where it was off less before it."""

Entry = dict[str, Any]


def measure(name: str, dtype: str, device: str, threads: int, seconds: float) -> Entry:
    """The result of a network in a dtype.

    Returns:
        ``norms``: what was replaced. ``errors``: of outputs and of gradients before and after, against float64.
        ``status``: "measured"; "refused", with a ``reason`` and no time, where the accelerated network is the less
        exact. ``timings`` (also of norms that do nothing) and ``memory`` (bytes at the peak, before and after) of
        both steps.
    """
    before, inputs = build(name, DTYPES[dtype], device)
    after = copy.deepcopy(before)
    norms = groupnorm.accelerate_(after).plan.summary
    found = _errors(before, after, inputs)
    entry: Entry = {"norms": norms, "errors": found}
    if reason := _refusal(found, DTYPES[dtype]):
        return entry | {"status": "refused", "reason": reason}
    clock, timings = clock_of(device), {}
    for step in (INFERENCE, TRAINING):
        models = {BEFORE: before, AFTER: after, FREE: _without_norms(before)}
        runs = {variant: _ready(stepper(step, model, inputs)) for variant, model in models.items()}
        timings[step] = timed(runs, clock, seconds / 2, AFTER)
    models = {BEFORE: before, AFTER: after}
    if device == "cuda":  # its allocator counts, so that no process of its own is needed
        memory = {s: {v: peak_of(stepper(s, model, inputs), device) for v, model in models.items()} for s in timings}
    else:
        memory = {s: {v: _peak(name, dtype, device, threads, s, v) for v in models} for s in timings}
    return entry | {"status": "measured", "timings": timings, "memory": memory}


def stepper(step: str, model: nn.Module, inputs: Sequence[Tensor]) -> Run:
    """What is timed: an output in evaluation, or an output and the gradients of all parameters in training."""
    if step == INFERENCE:

        def infer() -> Tensor:
            model.eval()
            with torch.no_grad():
                return run(model, inputs)

        return infer
    upstream = torch.randn_like(run(model, inputs))

    def train() -> None:
        model.train().zero_grad()
        run(model, inputs).backward(upstream)

    return train


def _without_norms(model: nn.Module) -> nn.Module:
    found = copy.deepcopy(model)
    for module in found.modules():
        if isinstance(module, nn.GroupNorm):
            module.forward = _handed_on  # type: ignore[method-assign]
    return found


def _handed_on(input: Tensor) -> Tensor:
    """In the layout that torch's norm gives: another would make the convolutions after it faster or slower."""
    return input.contiguous(memory_format=torch._prims_common.suggest_memory_format(input))


def _errors(before: nn.Module, after: nn.Module, inputs: Sequence[Tensor]) -> dict[str, dict[str, float]]:
    """By variant, those of ``output`` and ``gradients``: the norm of the difference over the norm of what is right."""
    exact = copy.deepcopy(before).double()
    wide = [t.double() if t.is_floating_point() else t for t in inputs]
    with torch.no_grad():
        upstream = torch.randn_like(run(before, inputs))
    right = _computed(exact, wide, upstream.double())
    del exact
    return {
        variant: {name: _distance(t, right[name]) for name, t in _computed(model, inputs, upstream).items()}
        for variant, model in ((BEFORE, before), (AFTER, after))
    }


def _computed(model: nn.Module, inputs: Sequence[Tensor], upstream: Tensor) -> dict[str, Tensor]:
    y = run(model.train(), inputs)
    found = torch.autograd.grad(y, list(model.parameters()), upstream)
    return {"output": y.detach(), "gradients": torch.cat([g.double().flatten() for g in found])}


def _distance(found: Tensor, right: Tensor) -> float:
    return float(torch.linalg.vector_norm(found.double() - right) / torch.linalg.vector_norm(right))


def _refusal(found: dict[str, dict[str, float]], dtype: torch.dtype) -> str:
    for name, after in found[AFTER].items():
        allowed = max(2 * found[BEFORE][name], ROUNDINGS * torch.finfo(dtype).eps)
        if not after <= allowed:
            return f"the {name} is off by {after:.3g} after it, and by {found[BEFORE][name]:.3g} before it"
    return ""


def _ready(step: Run) -> Callable[[], Run]:
    return lambda: step


def _peak(name: str, dtype: str, device: str, threads: int, step: str, variant: str) -> int | None:
    """Bytes at the peak of a step, in a process of its own."""
    arguments = json.dumps([name, dtype, device, threads, step, variant])
    command = [sys.executable, "-W", "ignore", "-m", "groupnorm.bench.steps", arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    peak: int | None = json.loads(done.stdout.splitlines()[-1])
    return peak


def _main(name: str, dtype: str, device: str, threads: int, step: str, variant: str) -> None:
    torch.set_num_threads(threads)
    model, inputs = build(name, DTYPES[dtype], device)
    if variant == AFTER:
        groupnorm.accelerate_(model)
    once = stepper(step, model, inputs)
    once()
    model.zero_grad()
    print(json.dumps(peak_of(once, device)))


if __name__ == "__main__":
    _main(*json.loads(sys.argv[1]))
