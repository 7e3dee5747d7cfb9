"""Turn the norms of a model into others, in place or in a copy, after a plan."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn

from groupnorm.conversion.groups import Groups
from groupnorm.conversion.plan import Plan, Row
from groupnorm.conversion.planning import Where, plan
from groupnorm.conversion.probe import Seen, probe
from groupnorm.conversion.report import Report
from groupnorm.conversion.rules import facts
from groupnorm.conversion.sites import Site, sites
from groupnorm.conversion.surgery import exchange_, rebind_, references
from groupnorm.conversion.targets import build
from groupnorm.conversion.wrapped import check_bare
from groupnorm.errors import ArgumentError, ConversionError, DivisibilityError
from groupnorm.nn.factory import parse
from groupnorm.nn.weight_standardization import standardize_weight_, unstandardize_weight_
from groupnorm.nn.wiring import NeedsConvolution

Model = TypeVar("Model", bound=nn.Module)
Optimizers = torch.optim.Optimizer | Iterable[torch.optim.Optimizer] | None


class NothingConvertedWarning(UserWarning):
    """A conversion found nothing to convert."""


def convert(
    model: Model,
    to: str | Plan = "gn",
    *,
    groups: Groups = None,
    where: Where = None,
    sample_input: Any = None,
) -> Model:
    """A copy of ``model`` with other norms; see :func:`groupnorm.plan` for the arguments and :func:`convert_`.

    Args:
        model: the network; it stays as it is.
        to: a spec such as "gn", or a plan.
        groups: how many groups.
        where: which norms.
        sample_input: an input of the model.

    Raises:
        ConversionError: norms cannot be converted; it names each, with the remedy. Or the model cannot be copied.

    Example::

        >>> model = groupnorm.convert(torchvision.models.resnet50(weights="DEFAULT"), "gn")
    """
    made = _planned(model, to, groups, where, sample_input)
    if made.rows and made.rows[0].path == "" and made.rows[0].action == "replace":
        holder = nn.Sequential(_copy(model))
        inner = Plan(made.to, [_moved(row, "0") for row in made.rows])
        convert_(holder, inner, sample_input=sample_input)
        return holder[0]  # type: ignore[return-value]
    twin = _copy(model)
    convert_(twin, made, sample_input=sample_input)
    return twin


def convert_(
    model: nn.Module,
    to: str | Plan = "gn",
    *,
    groups: Groups = None,
    where: Where = None,
    sample_input: Any = None,
    optimizer: Optimizers = None,
) -> Report:
    """Exchange the norms of ``model`` in place.

    Scale and shift stay the very parameters they were, so that optimisers keep them with their state. Kept as well are
    eps, dtype, device, mode, hooks, paths and the keys of the state dict, modules with several names, and activations
    that were part of the norm. What is lost stands in the plan.

    Args:
        model: the network.
        to: a spec such as "gn", or a plan of :func:`groupnorm.plan`, perhaps edited.
        groups: how many groups; see :func:`groupnorm.plan`.
        where: which norms.
        sample_input: an input of the model.
        optimizer: one or several whose parameter groups follow.

    Returns:
        What was done, with ``undo()``.

    Raises:
        ConversionError: norms cannot be converted, or the plan is of another model; the model is left as it was.

    Example::

        >>> report = groupnorm.convert_(model, "ws+gn", sample_input=images, optimizer=optimizer)
        >>> report.undo()
    """
    made = _planned(model, to, groups, where, sample_input)
    found = {site.path: site for site in sites(model)}
    _check(made, found)
    rows = made.of("replace")
    if not rows:
        warnings.warn(
            f"nothing was converted: {made.summary}; look at the plan, groupnorm.plan(model, ...)",
            NothingConvertedWarning,
            stacklevel=2,
        )
    olds = [found[row.path].module for row in rows]
    seen = probe(model, olds, sample_input)
    report = Report(made, _notes(model, olds))
    optimizers = [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else list(optimizer or ())
    try:
        for row in rows:
            _carry_out(row, found, seen[found[row.path].module], optimizers, report)
    except BaseException:
        for step in reversed(report._undo):
            step()
        raise
    return report


def _planned(model: nn.Module, to: str | Plan, groups: Groups, where: Where, sample_input: Any) -> Plan:
    """The plan that is asked for: a new one, or a copy of the one given, which is the caller's to edit."""
    if not isinstance(to, Plan):
        return plan(model, to, groups=groups, where=where, sample_input=sample_input)
    if groups is not None or where is not None:
        raise ArgumentError("a plan and groups= or where=; expected the plan alone: edit it")
    check_bare(model)
    return copy.deepcopy(to)


def _carry_out(
    row: Row, found: dict[str, Site], seen: Seen, optimizers: list[torch.optim.Optimizer], report: Report
) -> None:
    """One row; the report gets each step back as it is done."""
    site = found[row.path]
    known = facts(site.module)
    assert known is not None
    new = build(parse(row.new).row, row.number, site.module, known, seen.rank)
    if isinstance(new, NeedsConvolution):
        if seen.before is None:
            raise ConversionError(f"{row.path} needs the convolution before it; expected sample_input= to find it by")
        new.attach(seen.before)
    report._undo.append(exchange_(site, new))
    report._undo += [rebind_(optimizer, site.module, new) for optimizer in optimizers]
    owned = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    olds = {id(p) for p in site.module.parameters()}
    strays = [name for name, p in new.named_parameters() if optimizers and id(p) not in owned | olds]
    if strays:
        report.notes.append(
            f"{row.path} has new parameters {strays}, and no optimizer has any of the old norm: use add_param_group()"
        )
    if row.standardized:
        layer = found[row.standardized].module
        standardize_weight_(layer)
        report._undo.append(partial(unstandardize_weight_, layer, fold=False))


def _check(made: Plan, found: dict[str, Site]) -> None:
    """Raise unless the plan can be carried out on the model with these modules."""
    if refused := made.of("refuse"):
        reasons = "\n".join(f"- {row.path}: {row.why}" for row in refused)
        raise ConversionError(f"{len(refused)} norms cannot be converted:\n{reasons}")
    for row in made.of("replace"):
        site = found.get(row.path)
        known = None if site is None else facts(site.module)
        if site is None or known is None or known.channels != row.channels or set(site.paths[1:]) != set(row.shared):
            what = "nothing" if site is None else repr(site.module)
            raise ConversionError(
                f"the plan has {row.old} at {row.path!r}, and the model {what}; expected the model that was planned for"
            )
        if row.path == "":
            raise ConversionError(
                "the model itself is the norm, which cannot be exchanged in place; expected a model that contains it: "
                "use convert()"
            )
        if parse(row.new).row.number == "groups" and row.number and row.channels % row.number:
            raise DivisibilityError(row.channels, row.number)


def _notes(model: nn.Module, olds: list[nn.Module]) -> list[str]:
    return [
        f"{name} still holds a norm that was replaced, outside of its parent's children: update it by hand"
        for name in references(model, olds)
    ]


def _moved(row: Row, prefix: str) -> Row:
    moved = copy.copy(row)
    moved.path = f"{prefix}.{row.path}".rstrip(".")
    return moved


def _copy(model: Model) -> Model:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise ConversionError(
            f"{type(model).__name__} cannot be copied ({error}); expected a model for copy.deepcopy: use convert_(), "
            f"which works in place"
        ) from error
