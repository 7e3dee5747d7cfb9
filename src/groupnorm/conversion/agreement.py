"""A plan, perhaps edited, and the model it is applied to: whether they agree, before anything is touched."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import get_args

from torch import nn

from groupnorm.conversion.exchangeable import added, describe, known, lost, unfit
from groupnorm.conversion.groups import resolve
from groupnorm.conversion.plan import Action, Plan, Row
from groupnorm.conversion.planning import not_standardizable
from groupnorm.conversion.probe import Seen
from groupnorm.conversion.rules import Facts
from groupnorm.conversion.sites import Site
from groupnorm.errors import ConversionError, DivisibilityError
from groupnorm.nn.factory import parse
from groupnorm.nn.norm import Norm


def agree_(plan: Plan, found: Mapping[str, Site], seen: Mapping[nn.Module, Seen]) -> None:
    """Fill in what an edited plan leaves open: number and losses of its rows.

    Args:
        plan: in place.
        found: the modules of the model by their first path.
        seen: what they see, where that is known.

    Raises:
        ConversionError: it cannot be carried out on this model.
        DivisibilityError: a number of groups does not divide the channels.
    """
    check_actions(plan)
    if refused := plan.of("refuse"):
        reasons = "\n".join(f"- {row.path}: {row.why}" for row in refused)
        raise ConversionError(f"{len(refused)} norms cannot be converted:\n{reasons}")
    for row in plan.of("replace"):
        site, facts = _planned_for(row, found)
        sight = seen.get(site.module, Seen())
        target = _target(row)
        _number(row, target, sight.positions)
        if reason := unfit(site.module, facts, target, row.number, sight, row.path):
            raise ConversionError(f"{row.path} cannot become {row.becomes}: {reason}")
        if row.standardized:
            layer = found.get(row.standardized)
            if reason := not_standardizable(None if layer is None else layer.module):
                raise ConversionError(
                    f"the weight of {row.standardized!r}, before {row.path!r}, cannot be standardised: {reason}; "
                    f"expected the model that was planned for, or standardized=''"
                )
        row.lost = lost(site.module, facts, target, row.number)
        row.added = added(site.module, facts, target, row.number)
    check_covers(plan, (site.path for site in found.values() if known(site.module) is not None))


def check_covers(plan: Plan, norms: Iterable[str]) -> None:
    """Raise where a model has norms, by their paths, that a plan does not have."""
    planned = {path for row in plan.rows for path in (row.path, *row.shared)}
    if strange := [path for path in norms if path not in planned]:
        more = f" and {len(strange) - 5} more" if len(strange) > 5 else ""
        raise ConversionError(
            f"the model has norms that the plan does not have, {strange[:5]}{more}; expected the model that was "
            f"planned for, as it was then: plan it again, and leave norms out with where= or action='skip'"
        )


def check_actions(plan: Plan) -> None:
    """Raise unless each row has an action that there is."""
    for row in plan.rows:
        if row.action not in get_args(Action):
            near = get_close_matches(str(row.action), get_args(Action), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConversionError(
                f"the row of {row.path!r} has action={row.action!r}; expected 'replace', 'skip' or 'refuse'{hint}"
            )


def _planned_for(row: Row, found: Mapping[str, Site]) -> tuple[Site, Facts]:
    """The norm of a row."""
    site = found.get(row.path)
    facts = None if site is None else known(site.module)
    if site is not None and isinstance(facts, str):
        raise ConversionError(f"{row.path} cannot be converted: {facts}")
    if (
        site is None
        or not isinstance(facts, Facts)
        or describe(site.module) != row.old
        or set(site.paths[1:]) != set(row.shared)
    ):
        what = "nothing" if site is None else repr(site.module)
        raise ConversionError(
            f"the plan has {row.old} at {row.path!r}, and the model {what}; expected the model that was planned for"
        )
    if row.path == "":
        raise ConversionError(
            "the model itself is the norm, which cannot be exchanged in place; expected a model that contains it: "
            "use convert()"
        )
    row.channels = facts.channels
    return site, facts


def _target(row: Row) -> Norm:
    """The row of the catalog; a number that was written into ``row.new`` is that of the row."""
    spec = parse(row.new)
    if spec.standardized:
        raise ConversionError(
            f"the row of {row.path!r} has new={row.new!r}; expected a spec without 'ws+': set standardized to the path "
            f"of the convolution before it, or plan with to={row.new!r} and where="
        )
    row.new = spec.row.spec
    if spec.by_size and spec.number is not None:
        row.number = resolve(f"c{spec.number}", row.channels, None)[0]
    elif spec.number is not None:
        row.number = spec.number
    return spec.row


def _number(row: Row, target: Norm, positions: int | None) -> None:
    """The number of a row, checked; that of the default where it has none."""
    if not target.number:
        row.number = None
        return
    if row.number is None:
        if target.number == "groups":
            row.number, row.why = resolve("auto", row.channels, positions)
        return
    try:
        number = operator.index(row.number)
    except TypeError:
        number = 0
    if number < 1 or isinstance(row.number, bool):
        raise ConversionError(
            f"the row of {row.path!r} has number={row.number!r}; expected an integer of at least 1, or None for the "
            f"default"
        )
    row.number = number
    if target.number == "groups" and row.channels % number:
        raise DivisibilityError(row.channels, number)
