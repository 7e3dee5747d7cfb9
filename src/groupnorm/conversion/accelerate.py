"""Exchanges a model's group norms for this package's, which take over the activation after them where it is safe."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial

from torch import nn

from groupnorm.conversion.agreement import check_actions, check_covers
from groupnorm.conversion.convert import NothingConvertedWarning, still_held
from groupnorm.conversion.exchangeable import describe
from groupnorm.conversion.fusion.activations import activation_of, passes, unseen
from groupnorm.conversion.fusion.flow import is_ours
from groupnorm.conversion.fusion.rewritten import Rewritten, plain_class, rewritten
from groupnorm.conversion.plan import Plan, Row
from groupnorm.conversion.report import Report
from groupnorm.conversion.rules import Facts, facts
from groupnorm.conversion.sites import Site, sites
from groupnorm.conversion.surgery import Exchange, exchange_
from groupnorm.conversion.targets import build
from groupnorm.conversion.wrapped import check_bare
from groupnorm.errors import ArgumentError, ConversionError
from groupnorm.nn.catalog import CATALOG
from groupnorm.nn.group_norm import GroupNorm


def accelerate_(model: nn.Module, plan: Plan | None = None) -> Report:
    """Exchange every :class:`torch.nn.GroupNorm` of ``model`` for :class:`groupnorm.GroupNorm`, in place.

    A ReLU, SiLU or exact GELU right after a norm becomes part of the norm's call: in an ``nn.Sequential``, and in a
    method whose text has the one right after the other. The module around both becomes an instance of a subclass of its
    class with the same name, whose method makes one call of the two. Norm and activation stay what they are, so that it
    does not matter who else uses them, and each call looks whether they still are: an activation that was exchanged, or
    a hook, is heeded. Everything else stays as it is, and the plan says why.

    The parameters stay the very objects. As in :class:`groupnorm.GroupNorm`, groups of one element are an error in
    training.

    Args:
        model: the network.
        plan: of ``groupnorm.accelerate_.plan(model)``, perhaps edited: ``row.new = "gn"`` leaves the activation alone,
            ``row.action = "skip"`` the norm.

    Returns:
        What was done, with ``undo()``. Nothing done is a :class:`groupnorm.conversion.NothingConvertedWarning`.

    Raises:
        ArgumentError: ``plan`` is none.
        ConversionError: the model is wrapped, scripted or quantised; or the plan is of another model, or asks for what
            cannot be. The model is left as it was.

    Example::

        >>> print(groupnorm.accelerate_.plan(unet))
        >>> report = groupnorm.accelerate_(unet)
        >>> report.undo()
    """
    made = plan_acceleration(model) if plan is None else _agreed(plan, model)
    rows = made.of("replace")
    if not rows:
        warnings.warn(f"nothing was accelerated: {_nothing(made)}", NothingConvertedWarning, stacklevel=2)
    every = {site.path: site for site in sites(model)}
    replaced = [every[row.path].module for row in rows]
    around = _around([every[row.path] for row in rows if row.new != "gn"])
    report = Report(made)
    try:
        for row in rows:
            site = every[row.path]
            if not is_ours(site.module):
                report._undo.append(_PutBack(exchange_(site, _build(site.module, row))))
        for parent, names in around.items():
            if (kind := rewritten(parent, names).kind) is not None:
                report._undo.append(partial(object.__setattr__, parent, "__class__", type(parent)))
                object.__setattr__(parent, "__class__", kind)
    except BaseException:
        for step in reversed(report._undo):
            step()
        raise
    report.notes += still_held(model, [norm for norm in replaced if not is_ours(norm)])
    return report


def plan_acceleration(model: nn.Module) -> Plan:
    """Say what :func:`groupnorm.accelerate_` would do to a model, which stays as it is.

    Args:
        model: the network.

    Returns:
        A row for each group norm. ``row.new`` is "gn", or "gn+relu", "gn+silu", "gn+gelu" or "gn+gelu_tanh" where it
        takes over an activation; ``row.why`` says which, or why none.

    Raises:
        ConversionError: the model is wrapped, scripted or quantised.
    """
    check_bare(model)
    norms = [site for site in sites(model) if isinstance(site.module, nn.GroupNorm)]
    usable = [site for site in norms if not _left(site)]
    open_ = [site for site in usable if _own(site.module).takes and not unseen(site.module)]
    followed = {parent: rewritten(parent, names) for parent, names in _around(open_).items()}
    return Plan("groupnorm.GroupNorm", [_row(site, site in usable, followed) for site in norms])


def _nothing(made: Plan) -> str:
    """Why a plan does nothing."""
    if not made.rows:
        return "the model has no torch.nn.GroupNorm; for one with batch norms use groupnorm.convert_(model, 'gn')"
    return f"{made.summary} ({'; '.join(dict.fromkeys(row.why for row in made.rows))})"


def _row(site: Site, usable: bool, followed: dict[nn.Module, Rewritten]) -> Row:
    norm = site.module
    assert isinstance(norm, nn.GroupNorm)
    row = Row(site.path, describe(norm), "skip", "gn", why=_left(site), shared=site.paths[1:])
    if not usable:
        return row
    mine = _own(norm)
    activation, row.why = mine.activation, f"takes over {mine.label}" if mine.label else mine.why
    if mine.takes:
        activation, row.why = _after(site, followed)
    if isinstance(norm, GroupNorm) and not (mine.label or (mine.takes and activation)):
        row.why = "; ".join(filter(None, ("is groupnorm.GroupNorm already", row.why)))
        return row
    known = _known(norm)
    row.action, row.channels, row.number = "replace", known.channels, known.number
    row.new = f"gn+{activation}" if activation else "gn"
    return row


def _after(site: Site, followed: dict[nn.Module, Rewritten]) -> tuple[str, str]:
    """The activation that a norm takes over from outside, "" for none, and which that is, or why there is none."""
    if why := unseen(site.module):
        return "", why
    why = "no ReLU, SiLU or GELU follows it"
    for parent, name in site.places:
        found, (_, already) = followed[parent], plain_class(parent)
        why = found.why.get(name, why)
        for label, module in found.taken.get(name, ()):
            activation, stays = activation_of(module)
            if activation and not stays and not (is_ours(site.module) and name in already):
                return activation, f"takes over {label}"
            why = stays or (f"takes over {label} already" if activation else why)
    return "", why


def _around(norms: Iterable[Site]) -> dict[nn.Module, frozenset[str]]:
    """The modules that have norms as children, and their names there."""
    around: dict[nn.Module, frozenset[str]] = {}
    for site in norms:
        for parent, name in site.places:
            around[parent] = around.get(parent, frozenset()) | {name}
    return around


def _agreed(plan: Plan, model: nn.Module) -> Plan:
    """A copy of a plan that was perhaps edited, if it can be carried out on this model."""
    if not isinstance(plan, Plan):
        raise ArgumentError(f"plan={plan!r}; expected groupnorm.accelerate_.plan(model), perhaps edited, or None")
    check_actions(plan)
    now = {row.path: row for row in plan_acceleration(model).rows}
    for row in plan.of("replace") + plan.of("refuse"):
        here = now.get(row.path)
        if here is None or (here.old, here.shared) != (row.old, row.shared):
            what = "nothing" if here is None else here.old
            raise ConversionError(
                f"the plan has {row.old} at {row.path!r}, and the model {what}; expected the model that was planned for"
            )
        same = (here.action, here.number, here.channels) == (row.action, row.number, row.channels)
        if not same or row.new not in (here.new, "gn"):
            raise ConversionError(
                f"the plan has {row.action} {row.becomes} at {row.path!r}, which can only be {here.action} "
                f"{here.becomes} ({here.why or 'as it is'}); expected a row of groupnorm.accelerate_.plan(model), with "
                f"new='gn' to leave the activation alone, or action='skip'"
            )
    check_covers(plan, now)
    agreed = copy.deepcopy(plan)
    for row in agreed.rows:
        here = now.get(row.path)
        if here is None or here.action != "replace":
            continue
        if row.action == "skip":
            row.why = "is skipped, as asked"
        elif row.new != here.new:
            row.why = f"leaves the activation alone, as asked; otherwise {here.why}"
    return agreed


@dataclass(frozen=True)
class _Own:
    """The activation that a norm has itself.

    Attributes:
        activation: its name; "" for none.
        label: name of the child that it is, if the norm can take it over.
        why: the child stays.
        takes: it can take over an activation from outside.
    """

    activation: str = ""
    label: str = ""
    why: str = ""
    takes: bool = False


def _own(norm: nn.Module) -> _Own:
    known = _known(norm)
    children = [(name, child) for name in known.after if not passes(child := getattr(norm, name))]
    if known.activation:
        return _Own(known.activation, why="has an activation")
    if not children:
        return _Own(takes=True)
    name, child = children[0]
    activation, why = activation_of(child)
    if len(children) > 1 or not activation or why:
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
    names = {"weight", "bias", "parametrizations", *known.after}
    if strange := {*norm._parameters, *norm._buffers, *norm._modules} - names:
        return f"it has {', '.join(sorted(strange))} besides, as of pruning or weight norm"
    return "" if known.spec == "gn" else f"it is told to be {known.spec}"


def _build(norm: nn.Module, row: Row) -> nn.Module:
    known, mine = _known(norm), _own(norm)
    if row.new != "gn" and mine.label:
        known = replace(known, activation=mine.activation, after=())
    elif mine.takes:  # children that only hand on their input
        known = replace(known, after=())
    return build(CATALOG["gn"], row.number, norm, known, None)


@dataclass(frozen=True)
class _PutBack:
    """The way back from an exchange. The parameters are those of both, so that what they have learned since stays."""

    exchange: Exchange

    def check(self) -> None:
        """Raise unless the new norm still is where it was put."""
        self.exchange.check()

    def __call__(self) -> None:
        self.exchange.put_back()


accelerate_.plan = plan_acceleration  # type: ignore[attr-defined]
