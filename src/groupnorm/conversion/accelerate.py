"""Exchanges a model's group norms for this package's, which take over the activation after them where it is safe."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass, replace
from functools import partial

from torch import nn

from groupnorm.conversion.convert import NothingConvertedWarning
from groupnorm.conversion.fusion.activations import activation_of, passes
from groupnorm.conversion.fusion.pairs import Pairs, pairs
from groupnorm.conversion.fusion.rewritten import rewrite_
from groupnorm.conversion.plan import Plan, Row
from groupnorm.conversion.report import Report
from groupnorm.conversion.rules import Facts, facts
from groupnorm.conversion.sites import Site, sites
from groupnorm.conversion.surgery import exchange_, references
from groupnorm.conversion.targets import build
from groupnorm.conversion.wrapped import check_bare
from groupnorm.errors import ArgumentError, ConversionError
from groupnorm.nn.catalog import CATALOG
from groupnorm.nn.group_norm import GroupNorm


def accelerate_(model: nn.Module, plan: Plan | None = None) -> Report:
    """Exchange every :class:`torch.nn.GroupNorm` of ``model`` for :class:`groupnorm.GroupNorm`, in place.

    A ReLU, SiLU or exact GELU after a norm becomes part of the norm where that changes nothing: where the activation
    gets the norm's output and nothing else does, on every path through the code. That is known from the text of the
    methods that call both, or from the order of an ``nn.Sequential`` that is called as a whole, or from a trace by
    :mod:`torch.fx` of code without branches. Everything else stays as it is, and the plan says why: an output used
    twice, hooks, other activations, code that cannot be read. The parameters stay the very objects.

    In an ``nn.Sequential`` and after a trace the activation becomes an ``nn.Identity``. Otherwise it stays, as other
    calls may need it, and the module around both becomes an instance of a subclass of its class, with the same name,
    whose method leaves out that one call.

    What stands outside of the model's own modules is not seen: code that calls a norm or takes a part of a sequence by
    itself, and hooks that are registered later, get the output after the activation. As in
    :class:`groupnorm.GroupNorm`, groups of one element are an error in training.

    Args:
        model: the network.
        plan: of ``groupnorm.accelerate_.plan(model)``, perhaps edited: ``row.new = "gn"`` leaves the activation alone,
            ``row.action = "skip"`` the norm.

    Returns:
        What was done, with ``undo()``. Nothing done is a :class:`groupnorm.conversion.NothingConvertedWarning`.

    Raises:
        ConversionError: the model is wrapped, scripted or quantised; or the plan is of another model, or asks for what
            is not safe. The model is left as it was.

    Example::

        >>> print(groupnorm.accelerate_.plan(unet))
        >>> report = groupnorm.accelerate_(unet)
        >>> report.undo()
    """
    if plan is None:
        made, found = _plan(model)
    else:
        made, found = _agreed(plan, model)
    rows = made.of("replace")
    if not rows:
        warnings.warn(
            f"nothing was accelerated: {made.summary}; look at the plan, groupnorm.accelerate_.plan(model)",
            NothingConvertedWarning,
            stacklevel=2,
        )
    every = {site.path: site for site in sites(model)}
    report = Report(made)
    try:
        for row in rows:
            report._undo.append(exchange_(every[row.path], _build(every[row.path].module, row)))
        for parent, name in found.gone:
            old = parent._modules[name]
            assert old is not None
            parent._modules[name] = nn.Identity().train(old.training)
            report._undo.append(partial(_put_back, parent, name, old))
        for module, edits in found.edits.items():
            report._undo.append(partial(setattr, module, "__class__", type(module)))
            rewrite_(module, edits)
    except BaseException:
        for step in reversed(report._undo):
            step()
        raise
    replaced = [every[row.path].module for row in rows]
    report.notes += [
        f"{name} still holds a norm that was replaced, outside of its parent's children: update it by hand"
        for name in references(model, replaced)
    ]
    return report


def plan_acceleration(model: nn.Module) -> Plan:
    """Say what :func:`groupnorm.accelerate_` would do to a model, which stays as it is.

    Args:
        model: the network.

    Returns:
        A row for each group norm. ``row.new`` is "gn", or "gn+relu", "gn+silu" or "gn+gelu" where an activation becomes
        part of it; ``row.why`` says which, or why none does.

    Raises:
        ConversionError: the model is wrapped, scripted or quantised.
    """
    return _plan(model)[0]


def _plan(model: nn.Module, alone: frozenset[nn.Module] = frozenset()) -> tuple[Plan, Pairs]:
    """The plan, and what it is made from.

    Args:
        model: the network.
        alone: norms that shall have no activation.
    """
    check_bare(model)
    every = sites(model)
    norms = [(site, site.module) for site in every if isinstance(site.module, nn.GroupNorm)]
    left = {norm: why for site, norm in norms if (why := _left(site))}
    own = {norm: _own(norm, alone) for _, norm in norms if norm not in left}
    found = pairs(model, [s for s, norm in norms if norm in own and own[norm].takes and norm not in alone], every)
    rows = []
    for site, norm in norms:
        row = Row(site.path, _describe(norm), "skip", "gn", why=left.get(norm, ""), shared=site.paths[1:])
        if norm in own:
            mine = own[norm]
            activation, label = found.fused.get(norm, (mine.activation, mine.label))
            row.why = f"takes over {label}" if label else mine.why or found.why.get(norm, "")
            if isinstance(norm, GroupNorm) and not label:
                row.why = "; ".join(filter(None, ("is groupnorm.GroupNorm already", row.why)))
            else:
                row.action, row.channels, row.number = "replace", norm.num_channels, norm.num_groups
                row.new = f"gn+{activation}" if activation else "gn"
        rows.append(row)
    return Plan("groupnorm.GroupNorm", rows), found


def _agreed(wanted: Plan, model: nn.Module) -> tuple[Plan, Pairs]:
    """A plan that was perhaps edited, if it can be carried out safely on this model, and what it is made from."""
    wanted = copy.deepcopy(wanted)
    every = {site.path: site.module for site in sites(model)}
    asked = {row.path: row for row in wanted.of("replace")}
    alone = frozenset(
        module for path, module in every.items() if path not in asked or not asked[path].new.startswith("gn+")
    )
    made, found = _plan(model, alone)
    now = {row.path: row for row in made.rows}
    for row in wanted.of("replace") + wanted.of("refuse"):
        here = now.get(row.path)
        if here is None or (here.old, here.shared) != (row.old, row.shared):
            what = repr(every[row.path]) if row.path in every else "nothing"
            raise ConversionError(
                f"the plan has {row.old} at {row.path!r}, and the model {what}; expected the model that was planned for"
            )
        if (here.action, here.new, here.number, here.channels) != (row.action, row.new, row.number, row.channels):
            raise ConversionError(
                f"the plan has {row.action} {row.becomes} at {row.path!r}, which can only be {here.action} "
                f"{here.becomes} ({here.why or 'as it is'}); expected a row of groupnorm.accelerate_.plan(model), with "
                f"new='gn' to leave the activation alone, or action='skip'"
            )
    return wanted, found


@dataclass(frozen=True)
class _Own:
    """The activation that a norm has itself.

    Attributes:
        activation: its name; "" for none.
        label: of the child that it is, if the norm can take it over.
        why: the child stays.
        takes: another activation can become part of the norm.
    """

    activation: str = ""
    label: str = ""
    why: str = ""
    takes: bool = False


def _own(norm: nn.Module, alone: frozenset[nn.Module]) -> _Own:
    known = _known(norm)
    children = [(name, child) for name in known.after if not passes(child := getattr(norm, name))]
    if known.activation:
        return _Own(known.activation, why="has an activation")
    if not children:
        return _Own(takes=True)
    name, child = children[0]
    activation, why = activation_of(child)
    if norm in alone or len(children) > 1 or not activation or why:
        return _Own(why=why or f"its own {' and '.join(name for name, _ in children)} stay")
    return _Own(activation, name)


def _known(norm: nn.Module) -> Facts:
    known = facts(norm)
    assert known is not None
    return known


def _left(site: Site) -> str:
    """Why a norm stays as it is; "" where it need not."""
    norm = site.module
    if not site.places:
        return "the model itself is the norm, which cannot be exchanged in place"
    if "forward" in vars(norm):
        return f"the forward of this very {type(norm).__name__} was replaced"
    try:
        known = _known(norm)
    except ArgumentError:
        return f"what the forward of {type(norm).__name__} does is not known"
    return "" if known.spec == "gn" else f"it is told to be {known.spec}"


def _build(norm: nn.Module, row: Row) -> nn.Module:
    known = _known(norm)
    activation = row.new.partition("+")[2]
    if activation:
        known = replace(known, activation=activation, after=())
    return build(CATALOG["gn"], row.number, norm, known, None)


def _put_back(parent: nn.Module, name: str, module: nn.Module) -> None:
    now = parent._modules[name]
    assert now is not None
    parent._modules[name] = module.train(now.training)


def _describe(norm: nn.GroupNorm) -> str:
    return f"{type(norm).__name__}({norm.num_groups}, {norm.num_channels})"


accelerate_.plan = plan_acceleration  # type: ignore[attr-defined]
