"""Turn the norms of a model into others, in place or in a copy, after a plan."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.utils import parametrize

from groupnorm.conversion.agreement import agree_
from groupnorm.conversion.groups import Groups
from groupnorm.conversion.parallel import unnoticed
from groupnorm.conversion.plan import Plan, Row
from groupnorm.conversion.planning import look, plan
from groupnorm.conversion.probe import Seen
from groupnorm.conversion.report import Report
from groupnorm.conversion.rules import facts
from groupnorm.conversion.selection import Where
from groupnorm.conversion.sites import Site, sites
from groupnorm.conversion.surgery import exchange_, held_by, rebind_, references
from groupnorm.conversion.targets import build, internal
from groupnorm.conversion.wrapped import check_bare
from groupnorm.errors import ArgumentError, ConversionError
from groupnorm.nn.factory import parse
from groupnorm.nn.weight_standardization import is_standardized, standardize_weight_, unstandardize_weight_
from groupnorm.nn.wiring import NeedsConvolution
from groupnorm.ops.backends import check_name
from groupnorm.tables import count_of

Model = TypeVar("Model", bound=nn.Module)
Optimizers = torch.optim.Optimizer | Iterable[torch.optim.Optimizer] | None


class NothingConvertedWarning(UserWarning):
    """A conversion found nothing to convert."""


def convert(
    model: Model,
    to: str | Plan | Callable[..., nn.Module] = "gn",
    *,
    groups: Groups = None,
    where: Where = None,
    sample_input: Any = None,
    backend: str | None = None,
) -> Model:
    """A copy of ``model`` with other norms; see :func:`groupnorm.plan` for the arguments and :func:`convert_`.

    Args:
        model: the network; it stays as it is.
        to: a spec such as "gn", a norm of your own, or a plan.
        groups: how many groups.
        where: which norms.
        sample_input: an input of the model.
        backend: of the group norms that are made, as that of :class:`groupnorm.GroupNorm`: "native" exports a model to
            where this package is not installed. Other norms compute with torch's operations in any case. Default: that
            of the old norm, else "auto".

    Raises:
        ConversionError: norms cannot be converted; it names each, with the remedy. Or the model cannot be copied, or
            its copy is not its own: it shares modules with the model, or has a ``forward`` that calls those of the
            model.
        UnknownNameError: an unknown backend.

    Example::

        >>> model = groupnorm.convert(torchvision.models.resnet50(weights="DEFAULT"), "gn")
    """
    made = _planned(model, to, groups, where, sample_input)
    twin = _copy(model)
    for note in _hooks_of(model, twin):
        warnings.warn(note, stacklevel=2)
    if made.rows and made.rows[0].path == "" and made.rows[0].action == "replace":
        holder = nn.Sequential(twin)
        report = _convert(holder, Plan(made.to, [_moved(row, "0") for row in made.rows]), sample_input, None, backend)
        twin = holder[0]  # type: ignore[assignment]
    else:
        report = _convert(twin, made, sample_input, None, backend)
    for note in report.notes:
        warnings.warn(note, stacklevel=2)
    return twin


def convert_(
    model: nn.Module,
    to: str | Plan | Callable[..., nn.Module] = "gn",
    *,
    groups: Groups = None,
    where: Where = None,
    sample_input: Any = None,
    optimizer: Optimizers = None,
    backend: str | None = None,
) -> Report:
    """Exchange the norms of ``model`` in place.

    Scale and shift stay the very parameters they were, so that optimisers keep them with their state. Kept as well are
    eps, dtype, device, mode, hooks, paths and the keys of the state dict, modules with several names, and activations
    that were part of the norm. What is lost stands in the plan.

    Args:
        model: the network.
        to: a spec such as "gn", a norm of your own, or a plan of :func:`groupnorm.plan`, perhaps edited.
        groups: how many groups; see :func:`groupnorm.plan`.
        where: which norms.
        sample_input: an input of the model.
        optimizer: one or several whose parameter groups follow.
        backend: of the group norms that are made; see :func:`groupnorm.convert`.

    Returns:
        What was done, with ``undo()``.

    Raises:
        ConversionError: norms cannot be converted, or the plan is of another model; the model is left as it was.

    Example::

        >>> report = groupnorm.convert_(model, "ws+gn", sample_input=images, optimizer=optimizer)
        >>> report.undo()
    """
    parameters, buffers = list(model.parameters()), list(model.buffers())
    report = _convert(model, _planned(model, to, groups, where, sample_input), sample_input, optimizer, backend)
    if optimizer is None and (added := sum(len(row.added) for row in report.replaced)):
        report.notes.append(
            f"adds {count_of(added, 'parameter')}, which no optimizer of before trains: pass optimizer="
        )
    if reason := unnoticed(model, parameters, buffers):
        warnings.warn(reason, stacklevel=2)
    return report


def _convert(model: nn.Module, made: Plan, sample_input: Any, optimizer: Optimizers, backend: str | None) -> Report:
    if backend is not None:
        check_name(backend)
    found = {site.path: site for site in sites(model)}
    seen = look(model, [found[row.path].module for row in made.of("replace") if row.path in found], sample_input)
    agree_(made, found, seen)
    rows = made.of("replace")
    if not rows:
        warnings.warn(
            f"nothing was converted: {made.summary}; look at the plan, groupnorm.plan(model, ...)",
            NothingConvertedWarning,
            stacklevel=3,  # whoever called convert() or convert_()
        )
    report = Report(made)
    optimizers = [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else list(optimizer or ())
    try:
        for row in rows:
            _carry_out(row, found, seen[found[row.path].module], optimizers, report, backend)
        report.notes[:0] = still_held(model, [found[row.path].module for row in rows])
    except BaseException:
        for step in reversed(report._undo):
            step()
        raise
    return report


def _planned(
    model: nn.Module, to: str | Plan | Callable[..., nn.Module], groups: Groups, where: Where, sample_input: Any
) -> Plan:
    """The plan that is asked for: a new one, or a copy of the one given, which is the caller's to edit."""
    if not isinstance(to, Plan):
        return plan(model, to, groups=groups, where=where, sample_input=sample_input)
    if groups is not None or where is not None:
        raise ArgumentError("a plan and groups= or where=; expected the plan alone: edit it")
    check_bare(model)
    return copy.deepcopy(to)


def _carry_out(
    row: Row,
    found: dict[str, Site],
    seen: Seen,
    optimizers: list[torch.optim.Optimizer],
    report: Report,
    backend: str | None,
) -> None:
    """One row; the report gets each step back as it is done."""
    site = found[row.path]
    known = facts(site.module)
    assert known is not None
    new = build(parse(row.new).row, row.number, site.module, known, row.rank or seen.rank, backend)
    if isinstance(new, NeedsConvolution):
        if seen.before is None:
            raise ConversionError(f"{row.path} needs the convolution before it; expected sample_input= to find it by")
        new.attach(seen.before)
    report._undo.append(exchange_(site, new, internal=internal(site.module, known)))
    used = {id(p) for p in found[""].module.parameters()}
    report._undo += [rebind_(optimizer, site.module, new, used) for optimizer in optimizers]
    owned = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    olds = {id(p) for p in site.module.parameters()}
    strays = [name for name, p in new.named_parameters() if optimizers and id(p) not in owned | olds]
    if strays:
        report.notes.append(
            f"{row.path} has new parameters {strays}, and no optimizer has any of the old norm: use add_param_group()"
        )
    if row.standardized and not is_standardized(layer := found[row.standardized].module):  # one may stand before two
        report._undo.append(_Unstandardize(layer, _steps(layer) + 1))
        standardize_weight_(layer)


def _steps(layer: nn.Module) -> int:
    """How many parametrizations the weight of a layer has."""
    if not parametrize.is_parametrized(layer, "weight"):
        return 0
    return len(layer.parametrizations.weight)  # type: ignore[union-attr,arg-type]


@dataclass(frozen=True)
class _Unstandardize:
    """The way back from a standardised weight.

    Attributes:
        layer: whose weight it is.
        steps: parametrizations that the conversion left it with.
    """

    layer: nn.Module
    steps: int

    def check(self) -> None:
        """Raise where it is standardised no longer, or more was added since."""
        if not is_standardized(self.layer) or _steps(self.layer) != self.steps:
            raise ConversionError(
                f"the weight of {self.layer} is no longer the one that this conversion standardised; expected the "
                f"modules as it left them: undo first what was done to it later"
            )

    def __call__(self) -> None:
        if is_standardized(self.layer):  # not where that failed
            unstandardize_weight_(self.layer, fold=False)


def still_held(model: nn.Module, olds: list[nn.Module]) -> list[str]:
    """A note for each attribute of the model that holds a norm which was replaced."""
    return [
        f"{name} still holds a norm that was replaced, and is no child: set it anew" for name in references(model, olds)
    ]


def _hooks_of(model: nn.Module, twin: nn.Module) -> list[str]:
    """A note for each module of a copy with a hook that refers to the original, since functions are not copied."""
    originals = set(model.modules())
    return [
        f"{name} of {path or 'the model'} hold a module of the original, and may run or change it: register them anew "
        f"on the copy"
        for path, module in twin.named_modules()
        for name, hooks in vars(module).items()
        if "_hooks" in name and hooks and not originals.isdisjoint(held_by(hooks))
    ]


def _moved(row: Row, prefix: str) -> Row:
    moved = copy.copy(row)
    moved.path = f"{prefix}.{row.path}".rstrip(".")
    return moved


def _copy(model: Model) -> Model:
    """A copy of a model that has nothing of it."""
    try:
        twin = copy.deepcopy(model)
    except Exception as error:
        raise ConversionError(
            f"{type(model).__name__} cannot be copied ({error}); expected a model for copy.deepcopy: use convert_(), "
            f"which works in place"
        ) from error
    originals = set(model.modules())
    for path, module in twin.named_modules():
        forward = vars(module).get("forward")  # a function is not copied, with what its closure holds
        if module in originals or not originals.isdisjoint(held_by(forward)):
            what = "is" if module in originals else "has a forward that calls"
            raise ConversionError(
                f"the copy of {type(model).__name__} by copy.deepcopy is not its own: {path or 'it'} {what} a module "
                f"of the original; expected a copy that shares none: use convert_(), which works in place"
            )
    return twin
