"""Finds the group norms of a model that can take over the activation after them, and what has to change for it."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import nn

from groupnorm.conversion.fusion.activations import activation_of, passes, unseen
from groupnorm.conversion.fusion.source import is_sequential
from groupnorm.conversion.fusion.statements import Edit, Reading, Use, read
from groupnorm.conversion.fusion.traced import follow, is_container
from groupnorm.conversion.fusion.usage import not_called, reached_in
from groupnorm.conversion.sites import Site

Place = tuple[nn.Module, str]
After = tuple[Place, frozenset[Place]]
"""An activation, and all norms that it is called after."""


@dataclass
class Pairs:
    """What was found.

    Attributes:
        fused: activation of each norm that takes one over, and the label of what is taken over.
        why: the others stay without.
        edits: of the methods of modules.
        gone: activations of sequences that hand on their input from now on, by place.
    """

    fused: dict[nn.Module, tuple[str, str]] = field(default_factory=dict)
    why: dict[nn.Module, str] = field(default_factory=dict)
    edits: dict[nn.Module, frozenset[Edit]] = field(default_factory=dict)
    gone: list[Place] = field(default_factory=list)


Traces = dict[nn.Module, dict[nn.Module, tuple[nn.Module, frozenset[nn.Module]]]]
"""What :func:`follow` found, by module."""

NOTHING = "no activation follows it"


def pairs(model: nn.Module, norms: Iterable[Site], every: Iterable[Site]) -> Pairs:
    """Find the norms of a model whose output goes into one activation and nowhere else, whatever path is taken.

    Args:
        model: the network.
        norms: group norms that may take over an activation.
        every: all modules of the model.
    """
    found = Pairs()
    by_module = {site.module: site for site in every}
    candidates = {site.module: site for site in norms}
    around = {parent for site in candidates.values() for parent, _ in site.places}
    wanted = {name for site in candidates.values() for _, name in site.places}
    wanted |= {name for parent in around for name, child in parent._modules.items() if activation_of(child)[0]}
    reached = reached_in(model, wanted)
    for norm, site in candidates.items():
        why = unseen(norm) or next(
            (f"{reached[name]} reaches for {name}" for _, name in site.places if name in reached), ""
        )
        if why or not site.places:
            found.why[norm] = why or NOTHING
    traces: Traces = {}
    parents = {parent: _read(parent, candidates, by_module, reached, traces) for parent in around}
    while True:  # a norm that is out may take others with it, until none does
        out = set(found.why)
        for norm, site in candidates.items():
            if norm not in out:
                places = [parents[parent].of(name, out) for parent, name in site.places]
                why = next((why for _, _, why in places if why), "")
                if not why and len({activation for activation, _, _ in places}) > 1:
                    why = "different activations follow it"
                if why:
                    found.why[norm] = why
        if set(found.why) == out:
            break
    for norm, site in candidates.items():
        if norm not in out:
            activation, label, _ = parents[site.places[0][0]].of(site.places[0][1], out)
            found.fused[norm] = (activation, label)
    for parent, within in parents.items():
        if edits := within.edits(out):
            found.edits[parent] = edits
        found.gone += [place for place in within.gone(out) if place not in found.gone]
    return found


class _Within:
    """The norms of one parent, and the activations on them."""

    def __init__(self, parent: nn.Module, norms: dict[str, nn.Module]) -> None:
        self.parent, self.norms = parent, norms

    def of(self, name: str, out: set[nn.Module]) -> tuple[str, str, str]:
        """Activation and label of the norm of that name, and why it stays without, where these norms are out."""
        raise NotImplementedError

    def edits(self, out: set[nn.Module]) -> frozenset[Edit]:
        return frozenset()

    def gone(self, out: set[nn.Module]) -> list[Place]:
        return []


class _Children(_Within):
    """Of a sequence, or of a module that was traced: activations that are called after norms alone."""

    def __init__(
        self,
        parent: nn.Module,
        norms: dict[str, nn.Module],
        after: dict[str, After],
        reached: dict[str, str],
        nothing: str = NOTHING,
    ) -> None:
        super().__init__(parent, norms)
        self.after, self.reached, self.nothing = after, reached, nothing

    def of(self, name: str, out: set[nn.Module]) -> tuple[str, str, str]:
        if name not in self.after:
            return "", "", self.nothing
        (parent, child), together = self.after[name]
        if child in self.reached:
            return "", "", f"{self.reached[child]} reaches for {child}"
        if any(other._modules[key] in out for other, key in together):
            return "", "", f"{child} follows other norms, too, which stay without"
        activation, why = activation_of(parent._modules[child])
        return activation, child, why

    def gone(self, out: set[nn.Module]) -> list[Place]:
        return [self.after[name][0] for name, norm in self.norms.items() if norm not in out]


class _Text(_Within):
    """Of a module whose methods were read."""

    def __init__(self, parent: nn.Module, norms: dict[str, nn.Module], reading: Reading) -> None:
        super().__init__(parent, norms)
        self.reading = reading
        self.names = {id(call): name for name, calls in reading.calls.items() for call in calls}

    def of(self, name: str, out: set[nn.Module]) -> tuple[str, str, str]:
        uses = [self._use(call) for call in self.reading.calls[name]]
        after = [use for use in uses if use is not None]
        why = self.reading.why.get(name) or next((use.why for use in after if use.why), "")
        if uses and not after:
            return "", "", NOTHING
        if not uses or None in uses:
            why = why or NOTHING
        elif len({use.activation for use in after}) > 1:
            why = "different activations follow it"
        elif any(self.norms[self.names[id(call)]] in out for use in after for call in use.norms):
            why = f"{after[0].label} follows other norms, too, which stay without"
        return (after[0].activation, after[0].label, why) if after else ("", "", why)

    def _use(self, call: ast.Call) -> Use | None:
        return next((use for use in self.reading.uses if call in use.norms), None)

    def edits(self, out: set[nn.Module]) -> frozenset[Edit]:
        mine = [use for use in self.reading.uses if all(self._in(call, out) for call in use.norms)]
        return frozenset([use.edit for use in mine] + self.reading.dead) if mine else frozenset()

    def _in(self, call: ast.Call, out: set[nn.Module]) -> bool:
        name = self.names.get(id(call))
        return name is not None and self.norms[name] not in out


def _read(
    parent: nn.Module,
    candidates: dict[nn.Module, Site],
    every: dict[nn.Module, Site],
    reached: dict[str, str],
    traces: Traces,
) -> _Within:
    """What is known of the norms right below a module: by their order, by its text, or by a trace."""
    norms = {name: child for name, child in parent._modules.items() if child in candidates}
    nothing = NOTHING
    if is_sequential(parent):
        after, why = _in_order(parent, norms), not_called(every[parent], every)
        if not why:
            return _Children(parent, norms, after, reached)
        nothing = f"{NOTHING} for certain: {why}" if after else NOTHING
    reading = None if is_container(parent) else read(parent, set(norms))
    if reading is None or not reading.uses:
        after = _by_trace(parent, norms, candidates, every, traces)
        if after or reading is None:
            return _Children(parent, norms, after, reached, nothing)
    return _Text(parent, norms, reading)


def _in_order(parent: nn.Module, norms: dict[str, nn.Module]) -> dict[str, After]:
    """What follows each norm in a sequence."""
    after: dict[str, After] = {}
    children = list(parent._modules.items())
    for index, (name, _) in enumerate(children):
        if name in norms:
            rest = [(key, child) for key, child in children[index + 1 :] if not passes(child)]
            if rest and activation_of(rest[0][1])[0]:
                after[name] = ((parent, rest[0][0]), frozenset({(parent, name)}))
    return after


def _by_trace(
    parent: nn.Module,
    norms: dict[str, nn.Module],
    candidates: dict[nn.Module, Site],
    every: dict[nn.Module, Site],
    traces: Traces,
) -> dict[str, After]:
    """What follows each norm of a module, or of a container below one, by a trace."""
    root = parent
    while is_container(root):
        if len(every[root].places) != 1:
            return {}
        root = every[root].places[0][0]
    after: dict[str, After] = {}
    if root not in traces:
        traces[root] = follow(root, set(candidates))
    followed = traces[root]
    for name, norm in norms.items():
        if norm in followed:
            activation, givers = followed[norm]
            places = [every[module].places for module in (activation, *givers)]
            if all(len(each) == 1 for each in places):
                after[name] = (places[0][0], frozenset(each[0] for each in places[1:]))
    return after
