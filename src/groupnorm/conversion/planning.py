"""From a model and what is asked for to the plan of a conversion."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from groupnorm.conversion.groups import Groups, policy_of, resolve
from groupnorm.conversion.plan import Plan, Row
from groupnorm.conversion.probe import Seen, probe
from groupnorm.conversion.rules import Facts, facts
from groupnorm.conversion.sites import sites
from groupnorm.conversion.wrapped import check_bare
from groupnorm.errors import ArgumentError, SingleElementError
from groupnorm.nn.factory import Spec, parse
from groupnorm.nn.weight_standardization import check_standardizable, is_standardized
from groupnorm.nn.wiring import NeedsConvolution

Where = str | re.Pattern[str] | type[nn.Module] | Callable[[str, nn.Module], bool] | Iterable[Any] | None


def plan(
    model: nn.Module, to: str = "gn", *, groups: Groups = None, where: Where = None, sample_input: Any = None
) -> Plan:
    """Say what :func:`groupnorm.convert` would do to a model, which stays as it is.

    Args:
        model: the network.
        to: a spec of :func:`groupnorm.catalog`: "gn", "gn:8", "ws+gn", "bn", "brn", ... All norms over channels that
            are not this already are replaced.
        groups: how many groups: a number; "c16" for 16 channels a group; "auto": the most up to 32 that leave two
            channels and more than one element in a group; a function of channels and positions; or a mapping from
            glob or compiled regular expression to these, for some paths. A number that does not divide the channels
            gives the next smaller one that does, and the plan says so. Default: the number in ``to``, else "auto".
        where: which norms: a glob over paths, a compiled regular expression that is searched for in them, a class, a
            function of path and module, or a collection of these of which one holds. Default: all.
        sample_input: an input of the model (a tensor, a tuple of arguments, a mapping of keyword arguments). It is
            run once in evaluation mode, so that groups of one element are seen, and the layers before the norms, which
            "ws+..." and "cbn" need.

    Returns:
        The plan.

    Raises:
        ConversionError: the model is wrapped, scripted or quantised, so that its modules cannot be exchanged.
        UnknownNameError: an unknown spec.
        ArgumentError: groups that cannot be, or "ws+..." or "cbn" without ``sample_input``.
    """
    check_bare(model)
    spec = parse(to)
    groups = _asked(spec, groups)
    needs_layer = spec.standardized or issubclass(spec.row.layer, NeedsConvolution)
    if needs_layer and sample_input is None:
        raise ArgumentError(
            f"to={to!r} and no sample_input; expected an input of the model, such as torch.randn(2, 3, 224, 224): "
            f"the layers before the norms are found by running it"
        )
    found = [(site, known) for site in sites(model) if (known := _known(site.module)) is not None]
    seen = probe(model, [site.module for site, _ in found], sample_input)
    names = {module: name for name, module in model.named_modules()}
    rows = []
    for site, known in found:
        row = Row(site.path, _describe(site.module), "replace", spec.row.spec, shared=site.paths[1:])
        if not any(selects(where, path, site.module) for path in site.paths):
            row.action, row.why = "skip", "not selected by where="
        elif isinstance(known, str):
            row.action, row.why = "refuse", known
        else:
            _fill(row, spec, groups, known, seen[site.module])
            if needs_layer:
                _layer(row, spec, seen[site.module].before, names)
            if (
                row.action == "replace"
                and not row.standardized
                and (already := _already(row, spec, site.module, known))
            ):
                row.action, row.why = "skip", already
            if row.action == "replace":
                row.lost = _lost(site.module, spec.row.layer, known)
            else:
                row.number, row.standardized = None, ""
        rows.append(row)
    return Plan(to, rows)


def _known(norm: nn.Module) -> Facts | str | None:
    """What is known of a norm, or why nothing is."""
    try:
        return facts(norm)
    except ArgumentError as error:
        return str(error)


def selects(where: Where, path: str, module: nn.Module) -> bool:
    """Whether a condition holds for a module.

    Raises:
        ArgumentError: it is none.
    """
    if where is None:
        return True
    if isinstance(where, str):
        return fnmatchcase(path, where)
    if isinstance(where, re.Pattern):
        return where.search(path) is not None
    if isinstance(where, type):
        return isinstance(module, where)
    if callable(where):
        return bool(where(path, module))
    if isinstance(where, Iterable):
        return any(selects(part, path, module) for part in where)
    raise ArgumentError(f"where={where!r}; expected a glob, a compiled regular expression, a class, or a function")


def _asked(spec: Spec, groups: Groups) -> Groups:
    """The policy for groups from the spec's own number or the argument."""
    if groups is None:
        return f"c{spec.number}" if spec.by_size else spec.number
    if spec.row.number != "groups" or spec.number is not None:
        raise ArgumentError(
            f"groups={groups!r} with to={spec.row.spec!r}{'' if spec.number is None else f' and its {spec.number}'}; "
            f"expected groups= only where the spec has groups and does not number them, as 'gn'"
        )
    return groups


def _fill(row: Row, spec: Spec, groups: Groups, known: Facts, seen: Seen) -> None:
    """Channels, number and remark of a row, or why it is refused."""
    target = spec.row
    row.channels, row.number = known.channels, spec.number
    if target.number == "groups":
        kept = target.spec == known.spec and groups is None
        policy = known.number if kept and known.number else policy_of(groups, row.path)
        row.number, row.why = resolve(policy, known.channels, seen.positions)
    in_groups = _groups(target.spec, row.number, known.channels)
    if in_groups and seen.positions is not None and known.channels // in_groups * seen.positions == 1:
        row.action = "refuse"
        if known.channels == 1:
            remedy = "give a larger sample_input, if the model is meant for one"
        else:
            remedy = f"use groups={{{row.path!r}: 1}} for it" if target.number else "use 'gn' for it"
        row.why = (
            f"{in_groups} groups of {known.channels} channels at 1 position have 1 element each, and the output would "
            f"be the bias whatever the input; expected at least 2: {remedy}, or leave it out with where="
        )


def _already(row: Row, spec: Spec, old: nn.Module, known: Facts) -> str:
    """That a norm is what is asked for already, in words; "" where it is not."""
    had = _groups(known.spec, known.number, known.channels)
    sample = old._buffers.get("running_mean") is None  # an instance norm may evaluate with running statistics
    if had and sample and had == _groups(spec.row.spec, row.number, row.channels):
        return f"has {had} groups already"
    if known.spec == spec.row.spec and not had and row.number in (None, known.number):
        return f"is {known.spec} already"
    return ""


def _groups(spec: str, number: int | None, channels: int) -> int | None:
    """Groups of the norms that are group norm by another name; None of others."""
    return {"gn": number, "ln": 1, "in": channels}.get(spec)


def _layer(row: Row, spec: Spec, before: nn.Module | None, names: dict[nn.Module, str]) -> None:
    """The layer before a norm that needs one."""
    if spec.standardized:
        reason = _not_standardizable(before)
        row.standardized = "" if reason or before is None else names[before]
        if reason:
            row.why = "; ".join(filter(None, (row.why, f"without weight standardisation: {reason}")))
    elif before is None:
        row.action = "refuse"
        row.why = f"{spec.row.spec} needs the convolution right before it; expected one: use another norm here"


def _not_standardizable(layer: nn.Module | None) -> str:
    if layer is None:
        return "no single convolution or linear layer is right before it"
    if is_standardized(layer):
        return "the weight before it is standardised already"
    try:
        check_standardizable(layer)
    except (ArgumentError, SingleElementError) as error:
        return str(error)
    return ""


def _lost(old: nn.Module, new: type[nn.Module], known: Facts) -> tuple[str, ...]:
    batch = issubclass(new, _BatchNorm)
    lost = []
    if not batch and old._buffers.get("running_mean") is not None:
        lost.append("running statistics")
    lost += [name for name, _ in old.named_parameters(recurse=False) if name not in ("weight", "bias")]
    if known.activation == "own":
        lost.append("its own activation")
    return tuple(lost)


def _describe(module: nn.Module) -> str:
    """The norm in short: its class, groups where it has them, and channels."""
    numbers = [str(n) for name in ("num_groups", "num_channels", "num_features") if (n := getattr(module, name, None))]
    return f"{type(module).__name__}({', '.join(numbers)})"
