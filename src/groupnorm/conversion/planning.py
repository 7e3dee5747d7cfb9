"""From a model and what is asked for to the plan of a conversion."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from groupnorm.conversion.exchangeable import (
    added,
    describe,
    groups_of,
    known,
    lost,
    starts_statistics,
    unfit,
    untrainable,
)
from groupnorm.conversion.groups import Groups, check_groups, resolve_at
from groupnorm.conversion.plan import NOT_SELECTED, STARTS, TOO_SMALL, Plan, Row
from groupnorm.conversion.probe import Seen, probe
from groupnorm.conversion.rules import Facts
from groupnorm.conversion.selection import Where, check_fits_some, checked, selects
from groupnorm.conversion.sites import Site, rank_before, sites
from groupnorm.conversion.wrapped import check_bare
from groupnorm.errors import ArgumentError, ConversionError, SingleElementError
from groupnorm.nn.factory import Spec, parse
from groupnorm.nn.norm import Norm
from groupnorm.nn.own import spec_of
from groupnorm.nn.weight_standardization import check_standardizable, is_standardized
from groupnorm.nn.wiring import NeedsConvolution


def plan(
    model: nn.Module,
    to: str | Callable[..., nn.Module] = "gn",
    *,
    groups: Groups = None,
    where: Where = None,
    sample_input: Any = None,
) -> Plan:
    """Say what :func:`groupnorm.convert` would do to a model, which stays as it is.

    Args:
        model: the network.
        to: a spec of :func:`groupnorm.catalog`: "gn", "gn:8", "ws+gn", "bn", "brn", ..., or a norm of your own as
            :func:`groupnorm.norm_layer` takes it. All norms over channels that are not this already are replaced.
        groups: how many groups: a number; "c16" for 16 channels a group; "auto": the most up to 32 that leave two
            channels and more than one element in a group; a function of channels and positions; or a mapping from
            glob or compiled regular expression to these, for some paths. A number that does not divide the channels
            gives the next smaller one that does, and the plan says so. Default: the number in ``to``, else "auto".
        where: which norms: a glob over paths, a compiled regular expression that is searched for in them, a class, a
            function of path and module, or a collection of these of which one holds. Default: all.
        sample_input: an input of the model: a tensor, a tuple or list of arguments, or keyword arguments. It is run
            once in evaluation mode, so that groups of one element are seen, and the layers before the norms, which
            "ws+..." and "cbn" need.

    Returns:
        The plan.

    Raises:
        ConversionError: the model is wrapped, scripted or quantised, so that its modules cannot be exchanged; or it
            cannot run ``sample_input``.
        UnknownNameError: an unknown spec.
        ArgumentError: groups that cannot be, a pattern that fits no norm, or "ws+..." or "cbn" without
            ``sample_input``.
    """
    check_bare(model)
    to = spec_of(to)
    spec = parse(to)
    groups, where = _asked(spec, groups), checked(where)
    if needs_layer(spec) and sample_input is None:
        raise ArgumentError(
            f"to={to!r} and no sample_input; expected an input of the model, such as torch.randn(2, 3, 224, 224): "
            f"the layers before the norms are found by running it"
        )
    found = [(site, what) for site in sites(model) if (what := known(site.module)) is not None]
    _check_patterns(where, groups, [path for site, _ in found for path in site.paths])
    seen = look(model, [site.module for site, _ in found], sample_input)
    names = {module: name for name, module in model.named_modules()}
    rows: list[Row] = []
    for site, what in found:
        row = Row(site.path, describe(site.module), "replace", spec.row.spec, shared=site.paths[1:])
        selected = any(selects(where, path, site.module) for path in site.paths)
        if isinstance(what, Facts):
            sight = seen[site.module]
            _fill(row, spec, groups, what, sight, site)
            if selected and needs_layer(spec):
                _layer(row, spec, sight.before, names, rows)
            if row.action == "replace" and not row.standardized and (already := _already(row, spec, site.module, what)):
                row.action, row.why = "skip", already
            elif reason := unfit(site.module, what, spec.row, row.number, sight, row.path):
                row.action, row.why, row.standardized = "refuse", reason, ""
        else:
            row.action, row.why = "refuse", what
        if not selected:
            row.action, row.why = "skip", NOT_SELECTED
        if row.action == "replace" and isinstance(what, Facts):
            row.lost = lost(site.module, what, spec.row, row.number)
            row.added = added(site.module, what, spec.row, row.number)
            starts = STARTS if starts_statistics(site.module, what, spec.row, row.number) else ""
            small = remark(what, spec.row, row.number, seen[site.module])
            row.why = "; ".join(filter(None, (row.why, starts, small)))
        rows.append(row)
    return Plan(to, rows)


def needs_layer(spec: Spec) -> bool:
    """Whether a norm can be made only with the layer before it, which an input of the model shows."""
    return spec.standardized or issubclass(spec.row.layer, NeedsConvolution)


def look(model: nn.Module, norms: Iterable[nn.Module], sample_input: Any) -> dict[nn.Module, Seen]:
    """What norms see when the model runs ``sample_input``; nothing where that is None.

    Raises:
        ConversionError: the model cannot run it.
    """
    try:
        return probe(model, norms, sample_input)
    except Exception as error:
        raise ConversionError(
            f"running sample_input through the model failed: {type(error).__name__}: {error}; expected an input that "
            f"it takes in evaluation mode: a tensor, a tuple or list of arguments, or a mapping of keyword arguments; "
            f"a list that is one argument is within another, as [[image]] for a detector"
        ) from error


def _check_patterns(where: Where, groups: Groups, paths: Sequence[str]) -> None:
    """Raise where a pattern of ``where`` or ``groups`` cannot be one, or fits no norm."""
    check_groups(groups)
    check_fits_some("where", where if isinstance(where, list) else [where], paths)
    check_fits_some("groups", groups if isinstance(groups, Mapping) else (), paths)


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


def _fill(row: Row, spec: Spec, groups: Groups, facts: Facts, seen: Seen, site: Site) -> None:
    """Channels, number, rank and remark of a row."""
    target = spec.row
    row.channels, row.number = facts.channels, spec.number
    row.rank = facts.rank or seen.rank or rank_before(site)
    if target.number == "groups":
        kept = target.spec == facts.spec and groups is None
        wanted = facts.number if kept and facts.number else groups
        row.number, row.why = resolve_at(wanted, row.path, facts.channels, seen.positions)
    if target.spec == "bn" and row.rank is None:
        row.why = "taken for BatchNorm2d: pass sample_input= to be certain"


def remark(facts: Facts, target: Norm, number: int | None, seen: Seen) -> str:
    """That batches as small as that of sample_input do not train the new norm; "" where they do."""
    if not untrainable(facts, target, number, seen.shapes):
        return ""
    return f"{TOO_SMALL}, {min(shape[0] for shape in seen.shapes)}"


def _already(row: Row, spec: Spec, old: nn.Module, facts: Facts) -> str:
    """That a norm is what is asked for already, in words; "" where it is not."""
    had = groups_of(facts.spec, facts.number, facts.channels)
    sample = old._buffers.get("running_mean") is None  # an instance norm may evaluate with running statistics
    if had and sample and had == groups_of(spec.row.spec, row.number, row.channels):
        return f"has {had} groups already"
    if facts.spec == spec.row.spec and not had and row.number in (None, facts.number):
        return f"is {facts.spec} already"
    return ""


def _layer(row: Row, spec: Spec, before: nn.Module | None, names: dict[nn.Module, str], rows: Sequence[Row]) -> None:
    """The layer before a norm that needs one."""
    if spec.standardized:
        reason = not_standardizable(before)
        row.standardized = "" if reason or before is None else names[before]
        remark = f"without weight standardisation: {reason}" if reason else ""
        if other := next(
            (other.path for other in rows if row.standardized and row.standardized == other.standardized), ""
        ):
            remark = f"the weight of {row.standardized} is standardised once, for {other} and this"
        row.why = "; ".join(filter(None, (row.why, remark)))
    elif before is None:
        row.action = "refuse"
        row.why = f"{spec.row.spec} needs the convolution right before it; expected one: use another norm here"


def not_standardizable(layer: nn.Module | None) -> str:
    """Why the weight of a layer before a norm cannot be standardised; "" where it can."""
    if layer is None:
        return "no single convolution or linear layer is right before it"
    if is_standardized(layer):
        return "the weight before it is standardised already"
    try:
        check_standardizable(layer)
    except (ArgumentError, SingleElementError) as error:
        return str(error)
    return ""
