"""Follows the outputs of norms through a trace of code that has one path alone."""

from __future__ import annotations

import copy
import dis
import os
import sys
import weakref
from types import CodeType, FrameType
from typing import Any

import torch
import torch.fx
from torch import nn

from groupnorm.conversion.fusion.activations import activation_of, passes
from groupnorm.conversion.fusion.source import is_sequential, methods, names

_MACHINERY = tuple(os.path.dirname(file) + os.sep for file in (torch.__file__, __file__, os.__file__))
"""Folders whose code runs in any trace: torch, this package and Python's own library."""


def is_container(module: nn.Module) -> bool:
    """Whether a module only holds others, or calls them in their order."""
    return isinstance(module, (nn.ModuleList, nn.ModuleDict)) or is_sequential(module)


def follow(root: nn.Module, norms: set[nn.Module]) -> dict[nn.Module, tuple[nn.Module, frozenset[nn.Module]]]:
    """The activation that gets the output of each norm, and all the norms whose outputs it gets.

    Symbolic tracing sees the path that was taken. So the code that ran has to be without a condition (loops over
    modules are none), and to be the only one of the class that mentions what it uses; the two modes have to agree.

    Args:
        root: a module; what it calls is not looked into, but for containers.
        norms: below it.

    Returns:
        Nothing of norms whose output goes elsewhere, too. Nothing at all where the module cannot be traced.
    """
    if "forward" in vars(root) or not any(norm in norms for norm in root.modules()) or _branches(type(root).forward):
        return {}
    found = []
    for mode in (True, False):
        try:
            twin = copy.deepcopy(root, {id(t): t for t in (*root.parameters(), *root.buffers())})
            twin.training = mode
            found.append(_once(root, twin, norms))
        except Exception:  # whatever a forward does with a proxy
            return {}
    return found[0] if found[0] == found[1] else {}


def _branches(function: Any) -> bool:
    return any("_IF_" in step.opname for step in dis.get_instructions(function))


def _once(
    root: nn.Module, twin: nn.Module, norms: set[nn.Module]
) -> dict[nn.Module, tuple[nn.Module, frozenset[nn.Module]]]:
    """The same for one mode, from a copy, as running a forward may leave something on the module."""
    graph, ran, kept = _trace(twin)
    if any(_branches(code) for code in ran):
        return {}
    calls = [(node, root.get_submodule(str(node.target))) for node in graph.nodes if node.op == "call_module"]
    used = {part for node, _ in calls for part in str(node.target).split(".")[:1]}
    places = {(code.co_filename, code.co_firstlineno) for code in ran}
    for method in methods(type(root)):
        code = method.function.__code__
        if (code.co_filename, code.co_firstlineno) not in places and used & names(code):
            return {}
    module_of = dict(calls)
    after: dict[nn.Module, set[nn.Module | None]] = {}
    gets: dict[nn.Module, set[nn.Module | None]] = {}
    for node, module in calls:
        if module in norms:
            after.setdefault(module, set()).add(None if node in kept else _user(node, module_of))
        elif activation_of(module)[0]:
            source = node.args[0] if len(node.args) == 1 and not node.kwargs else None
            while isinstance(source, torch.fx.Node) and passes(module_of.get(source)):
                source = source.args[0]
            giver = module_of.get(source) if isinstance(source, torch.fx.Node) else None
            gets.setdefault(module, set()).add(giver if giver in norms else None)
    return {
        norm: (act, frozenset(n for n in gets[act] if n is not None))
        for norm, acts in after.items()
        if len(acts) == 1 and (act := next(iter(acts))) is not None and None not in gets[act]
    }


def _user(node: torch.fx.Node, module_of: dict[torch.fx.Node, nn.Module]) -> nn.Module | None:
    """The activation that is called on what a node gives, if nothing else uses it."""
    if len(node.users) != 1:
        return None
    user = next(iter(node.users))
    module = module_of.get(user)
    if module is None or user.args != (node,) or user.kwargs:
        return None
    if passes(module):
        return _user(user, module_of)
    return module if activation_of(module)[0] else None


class _Tracer(torch.fx.Tracer):
    def __init__(self) -> None:
        super().__init__()
        self.given: list[tuple[torch.fx.Node, weakref.ref[torch.fx.Proxy]]] = []

    def is_leaf_module(self, module: nn.Module, path: str) -> bool:
        return not is_container(module)

    def proxy(self, node: torch.fx.Node) -> torch.fx.Proxy:
        proxy = super().proxy(node)
        self.given.append((node, weakref.ref(proxy)))
        return proxy


def _trace(root: nn.Module) -> tuple[torch.fx.Graph, set[CodeType], set[torch.fx.Node]]:
    """The graph, the codes that ran for it, but for those of torch, and the nodes that something still holds."""
    ran: set[CodeType] = set()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        file = frame.f_code.co_filename
        installed = "site-packages" in file and not file.startswith(_MACHINERY[0])  # in a folder of Python's library
        if event == "call" and (installed or not file.startswith((*_MACHINERY, "<frozen"))):
            ran.add(frame.f_code)

    tracer, before = _Tracer(), sys.getprofile()
    sys.setprofile(note)
    try:
        graph = tracer.trace(root)
    finally:
        sys.setprofile(before)
    return graph, ran, {node for node, proxy in tracer.given if proxy() is not None}
