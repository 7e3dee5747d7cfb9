"""Whether one norm can become another: what keeps it from it, and what is lost on the way."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import torch
from torch import nn
from torch.nn.utils import parametrize

from groupnorm.conversion.probe import Seen
from groupnorm.conversion.rules import Facts, facts
from groupnorm.conversion.targets import RUNNING, keeps_statistics, make, uses_batch
from groupnorm.errors import ArgumentError
from groupnorm.nn.norm import Norm
from groupnorm.nn.wiring import NeedsConvolution


def known(norm: nn.Module) -> Facts | str | None:
    """What is known of a norm, or why it cannot be exchanged, with the remedy; None where it is no norm."""
    try:
        found = facts(norm)
    except ArgumentError as error:
        return str(error)
    return None if found is None else _obstacle(norm) or found


def _obstacle(norm: nn.Module) -> str:
    """What was done to this very norm that another in its place would undo or not survive; "" for nothing."""
    forward = vars(norm).get("forward")
    if forward is not None and getattr(forward, "__func__", None) is not type(norm).forward:  # put back by accelerate
        return (
            "its forward was replaced, as by hooks of accelerate, and a new norm would not run it: remove that first "
            "(accelerate.hooks.remove_hook_from_module), or leave it out with where="
        )
    # Pruning and the older weight_norm keep the parameter under other names and set a plain tensor in its place.
    if computed := [name for name in ("weight", "bias") if name in vars(norm)]:
        return (
            f"its {' and '.join(computed)} is computed by a hook from other tensors, as of pruning, weight_norm or "
            f"spectral_norm: use prune.remove, remove_weight_norm or remove_spectral_norm first"
        )
    return ""


def unfit(old: nn.Module, facts: Facts, target: Norm, number: int | None, seen: Seen, path: str) -> str:
    """Why a norm must not become that of ``target``, with the remedy; "" where it may.

    Args:
        old: the norm.
        facts: what is known of it.
        target: row of the catalog.
        number: of groups, examples or parts.
        seen: what it saw when the model ran.
        path: of the norm.
    """
    if target.spec == "frozen" and not (
        _has_statistics(old) and keeps_statistics(old, facts, target, _new(target, number, facts))
    ):
        first = "syncbn" if uses_batch(old) else "bn"  # "bn" would leave a batch norm without statistics as it is
        return (
            f"it has no running mean and variance of its {facts.channels} channels that batch norm evaluates with, and "
            f"frozen would use 0 and 1: convert to {first!r}, call recompute_statistics_(model, data), then convert to "
            f"'frozen'"
        )
    return (
        _misfit(facts, seen)
        or _unattachable(facts, target, number, seen.before)
        or _single(facts, target, number, seen, path)
    )


def _misfit(facts: Facts, seen: Seen) -> str:
    """Why another norm would take what this one receives for something else; "" where it would not."""
    for shape in seen.shapes:
        if facts.spec == "in" and facts.rank is not None and len(shape) == facts.rank - 1:
            return (
                f"it receives {shape} without a batch axis, and the new norm would take {shape[0]} for the samples; "
                f"expected (N, C, *): call the model with x.unsqueeze(0), or leave it out with where="
            )
        if len(shape) < 2 or shape[1] != facts.channels:
            return (
                f"it receives {shape}, and has {facts.channels} channels; expected (N, {facts.channels}, *): mend the "
                f"layer before it, or leave it out with where="
            )
    return ""


def _unattachable(facts: Facts, target: Norm, number: int | None, before: nn.Module | None) -> str:
    """Why the new norm cannot compute with the weight of the layer before it; "" where it can, or needs none."""
    new = make(target, number, facts, affine=False, device="meta")
    if before is not None and isinstance(new, NeedsConvolution):
        try:
            new.attach(before)
        except ArgumentError as error:
            return str(error)
    return ""


def _single(facts: Facts, target: Norm, number: int | None, seen: Seen, path: str) -> str:
    """Why no batch of such inputs could train the new norm; "" where one could."""
    groups = groups_of(target.spec, number, facts.channels)
    if groups is None or seen.positions is None or facts.channels // groups * seen.positions != 1:
        several = max(2, target.resolve(facts.channels, number) if target.number == "examples" else 0)
        return untrainable(facts, target, number, [(several, *shape[1:]) for shape in seen.shapes])
    if facts.channels == 1:
        remedy = "give a larger sample_input, if the model is meant for one"
    else:
        remedy = f"use groups={{{path!r}: 1}} for it" if target.number else "use 'gn' for it"
    return (
        f"{groups} groups of {facts.channels} channels at 1 position have 1 element each, and the output would "
        f"be the bias whatever the input; expected at least 2: {remedy}, or leave it out with where="
    )


def untrainable(facts: Facts, target: Norm, number: int | None, shapes: Iterable[tuple[int, ...]]) -> str:
    """What the new norm raises in training on inputs of such shapes; "" for nothing.

    A synchronised batch norm is not asked: other processes may have more samples.
    """
    if target.spec == "syncbn":
        return ""
    reasons = (_error(facts, target, number, shape) for shape in dict.fromkeys(shapes))
    return next(filter(None, reasons), "")


@lru_cache(maxsize=4096)  # the layers of a network are much alike
def _error(facts: Facts, target: Norm, number: int | None, shape: tuple[int, ...]) -> str:
    """What a new norm raises in training on an input of this shape, which has no values; "" for nothing."""
    new = make(target, number, facts, affine=False, rank=len(shape), device="meta").train()
    if isinstance(new, NeedsConvolution):
        new.attach(nn.Linear(1, facts.channels, device="meta"))
    samples = shape[0]
    if target.number == "examples":  # one chunk, and what remains
        size = target.resolve(facts.channels, number)
        samples = min(samples, size + samples % size)
    try:
        new(torch.empty(samples, *shape[1:], device="meta"))
    except ValueError as error:
        return str(error)
    return ""


def groups_of(spec: str, number: int | None, channels: int) -> int | None:
    """Groups of the norms that are group norm by another name; None of others."""
    return {"gn": number, "ln": 1, "in": channels}.get(spec)


def lost(old: nn.Module, facts: Facts, target: Norm, number: int | None) -> tuple[str, ...]:
    """What the norm of ``target`` cannot keep of ``old``."""
    found = []
    new = _new(target, number, facts)
    if _has_statistics(old) and not keeps_statistics(old, facts, target, new):
        found.append("running statistics")
        if _has_statistics(new) and not getattr(old, "track_running_stats", True):  # new ones would never move
            found.append("track_running_stats=False")
    if uses_batch(old) and _has_statistics(new) and target.spec != "bn":
        found.append("evaluation with the statistics of the batch")
    of_a_norm = {"weight", "bias", *RUNNING, *facts.after}
    found += [name for name in (*old._parameters, *old._buffers) if name not in of_a_norm and _set(old, name)]
    found += [name for name, _ in old.named_children() if name not in {*of_a_norm, "parametrizations"}]
    if parametrize.is_parametrized(old):
        parametrized = old.parametrizations.keys()  # type: ignore[operator,union-attr]
        found += [f"parametrization of {name}" for name in parametrized if name not in ("weight", "bias")]
    return (*found, "its own activation") if facts.activation == "own" else tuple(found)


def starts_statistics(old: nn.Module, facts: Facts, target: Norm, number: int | None) -> bool:
    """Whether the norm of ``target`` has running statistics that begin at 0 and 1."""
    new = _new(target, number, facts)
    without = target.spec == "bn" and uses_batch(old)  # it stays without
    return _has_statistics(new) and not without and not keeps_statistics(old, facts, target, new)


def added(old: nn.Module, facts: Facts, target: Norm, number: int | None) -> tuple[str, ...]:
    """Names of the parameters that only the norm of ``target`` has, which an optimiser of before does not train."""
    affine = getattr(old, "weight", None) is not None
    new = make(target, number, facts, affine, device="meta")
    return tuple(name for name, _ in new.named_parameters() if name not in ("weight", "bias"))


def _set(module: nn.Module, name: str) -> bool:
    return module._parameters.get(name) is not None or module._buffers.get(name) is not None


def _has_statistics(norm: nn.Module) -> bool:
    return norm._buffers.get("running_mean") is not None


def _new(target: Norm, number: int | None, facts: Facts) -> nn.Module:
    """A new norm that holds no memory."""
    return make(target, number, facts, affine=True, device="meta")


def describe(module: nn.Module) -> str:
    """The norm in short: its class, groups where it has them, and channels."""
    channels = getattr(module, "num_channels", None) or getattr(module, "num_features", None)
    numbers = [str(number) for number in (getattr(module, "num_groups", None), channels) if number]
    return f"{type(module).__name__}({', '.join(numbers)})"
