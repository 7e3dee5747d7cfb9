"""A module whose methods let its group norms take over the activations after them, by a subclass of its class."""

from __future__ import annotations

import abc
import ast
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from types import CodeType, FunctionType, ModuleType
from typing import Any

from torch import Tensor, nn

from groupnorm.conversion.fusion.activations import activation_of, passes
from groupnorm.conversion.fusion.flow import Held, flow, hold, released
from groupnorm.conversion.fusion.source import parse, remade
from groupnorm.conversion.fusion.text import FLOW, HOLD, Rewriter


@dataclass
class Rewritten:
    """What became of a class for some of its norms.

    Attributes:
        kind: the subclass; None where nothing could be rewritten.
        taken: what each norm, by its name in the module, may take over: the text for it, and what that is now.
        why: why a method that calls a norm stays as it is, by the norm's name.
    """

    kind: type[nn.Module] | None = None
    taken: dict[str, list[tuple[str, Any]]] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)


def rewritten(module: nn.Module, norms: frozenset[str]) -> Rewritten:
    """The class that ``module`` may have, with the same name and the same methods but for their calls of these norms.

    Every method computes what it computed before, for every module of the class and whatever its norms and activations
    are, so that it does not matter who else uses them. It is made anew each time, as classes change in a notebook.

    Args:
        module: the module that calls the norms.
        norms: names of the norms in it.
    """
    kind, before = plain_class(module)
    norms |= before
    found = Rewritten()
    if why := _closed(module):
        found.why = dict.fromkeys(norms, why)
        return found
    if kind.forward is nn.Sequential.forward:
        members: dict[str, Any] = {"forward": _in_order(norms)}
        found.taken = {name: [(key, module._modules[key])] for name in norms if (key := _next(module, name))}
    else:
        members = {name: made for name, f in _methods(kind).items() if (made := _method(module, f, norms, found))}
    if found.taken:
        found.kind = _subclass(kind, members, norms)
    return found


def plain_class(module: nn.Module) -> tuple[type[nn.Module], frozenset[str]]:
    """The class of a module before it was rewritten, and the names of the norms it was rewritten for."""
    kind = type(module)
    norms = vars(kind).get(_NORMS)
    return (kind, frozenset()) if norms is None else (kind.__bases__[0], norms)


_NORMS = "_groupnorm_norms"
"""Attribute of the classes that are made here."""


def _closed(module: nn.Module) -> str:
    """Why the class of a module cannot have a subclass; "" where it can."""
    kind = type(module)
    if "forward" in vars(module):
        return f"the forward of this very {kind.__name__} was replaced"
    if type(kind) not in (type, abc.ABCMeta) or any(
        "__init_subclass__" in vars(base) for base in kind.__mro__ if base.__module__.split(".")[0] not in _QUIET
    ):
        return f"{kind.__name__} wants to know its subclasses"
    return ""


_QUIET = ("builtins", "typing", "torch", "abc")


def _methods(kind: type) -> dict[str, FunctionType]:
    """The methods of a class that are plain functions, those of torch left out."""
    every = {name: inspect.getattr_static(kind, name) for name in dir(kind)}
    return {
        name: value
        for name, value in every.items()
        if isinstance(value, FunctionType) and not (value.__module__ or "").startswith("torch.")
    }


def _method(module: nn.Module, function: FunctionType, norms: frozenset[str], found: Rewritten) -> FunctionType | None:
    """The method rewritten; None where there is nothing to rewrite."""
    mentioned = norms & _names(inspect.unwrap(function).__code__)
    if not mentioned:
        return None
    tree = None if hasattr(function, "__wrapped__") else parse(function)
    if tree is None:
        found.why |= dict.fromkeys(mentioned, f"{function.__qualname__} is decorated, or cannot be read as text")
        return None

    def object_of(node: ast.expr) -> Any:
        """What an attribute of the module, or of a global, is at this moment."""
        if isinstance(node, ast.Name):
            return module if node.id == rewriter.me else function.__globals__.get(node.id)
        base = object_of(node.value) if isinstance(node, ast.Attribute) else None
        if isinstance(base, nn.Module):  # without running a property
            return {**vars(base), **base._modules}.get(node.attr)  # type: ignore[attr-defined]
        return getattr(base, node.attr, None) if isinstance(base, ModuleType) else None  # type: ignore[attr-defined]

    rewriter = Rewriter(
        tree,
        is_norm=lambda node: isinstance(node, ast.Attribute) and node.attr in norms and object_of(node.value) is module,
        is_activation=lambda node: bool(activation_of(object_of(node))[0]),
        passes=lambda node: passes(object_of(node)),
    )
    rewriter.rewrite()
    if not rewriter.taken:
        return None
    made = remade(function, tree, {HOLD: hold, FLOW: flow})
    for norm, activation in rewriter.taken:
        assert isinstance(norm, ast.Attribute)
        label = ast.unparse(activation).removeprefix(f"{rewriter.me}.")
        found.taken.setdefault(norm.attr, []).append((label, object_of(activation)))
    return made


def _names(code: CodeType) -> set[str]:
    """Names of the attributes and globals in a code, and in the functions within it."""
    inner = (_names(part) for part in code.co_consts if isinstance(part, CodeType))
    return {*code.co_names}.union(*inner)


def _next(module: nn.Module, name: str) -> str:
    """The activation after a child of a sequence, by its name; "" where none follows."""
    names = list(module._modules)
    for key in names[names.index(name) + 1 :]:
        if not passes(child := module._modules[key]):
            return key if activation_of(child)[0] else ""
    return ""


def _in_order(norms: frozenset[str]) -> Callable[[nn.Sequential, Any], Any]:
    """The forward of a sequence, in which these norms take over what follows them."""

    def forward(self: nn.Sequential, input: Tensor) -> Any:
        value: Any = input
        for step in self:
            if any(step is self._modules.get(name) for name in norms) or (isinstance(value, Held) and passes(step)):
                value = hold(step, value)
            else:
                value = flow(step, value)
        return released(value)

    return forward


_MADE: dict[Any, type[nn.Module]] = {}
"""The subclasses, so that modules of one class that are rewritten alike still have one class."""


def _subclass(kind: Any, members: dict[str, FunctionType], norms: frozenset[str]) -> type[nn.Module]:
    texts = [(name, inspect.getattr_static(kind, name), made.__code__) for name, made in members.items()]
    key = (kind, norms, *texts)
    if key not in _MADE:

        def reduce(self: nn.Module, protocol: Any) -> Any:  # a class made in a function cannot be found by its name
            return _blank, (kind, norms), self.__getstate__()

        about = {
            _NORMS: norms,
            "__module__": kind.__module__,
            "__qualname__": kind.__qualname__,
            "__doc__": kind.__doc__,
        }
        _MADE[key] = type(kind)(kind.__name__, (kind,), {**members, **about, "__reduce_ex__": reduce, _NORMS: norms})
    return _MADE[key]


def _blank(kind: Any, norms: frozenset[str]) -> nn.Module:
    """A module that is rewritten as soon as it has its state, from the methods that its class has by then."""

    def fill(self: nn.Module, state: dict[str, Any]) -> None:
        object.__setattr__(self, "__class__", kind)
        self.__setstate__(state)
        if (made := rewritten(self, norms).kind) is not None:
            object.__setattr__(self, "__class__", made)

    stub = type(kind)(kind.__name__, (kind,), {"__setstate__": fill})
    module: nn.Module = stub.__new__(stub)
    return module
