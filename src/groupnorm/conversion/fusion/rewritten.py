"""A module whose methods leave out some calls: those of activations that its norms have taken over."""

from __future__ import annotations

import ast
import hashlib
import linecache
from types import FunctionType
from typing import Any

from torch import nn

from groupnorm.conversion.fusion.source import Method, compiled, methods
from groupnorm.conversion.fusion.statements import Edit
from groupnorm.conversion.fusion.syntax import place
from groupnorm.errors import ConversionError


def rewrite_(module: nn.Module, edits: frozenset[Edit]) -> None:
    """Carry out edits on the methods of one module; its class becomes a subclass of its own, with the same name.

    The text of the methods stays the author's but for the edits, and is shown in tracebacks. The module can be copied
    and pickled; ``module.__class__ = old`` takes it back.
    """
    module.__class__ = _rewritten(type(module), edits)


_MADE: dict[tuple[type[nn.Module], frozenset[Edit]], type[nn.Module]] = {}


def _rewritten(kind: type[nn.Module], edits: frozenset[Edit]) -> type[nn.Module]:
    """The subclass, always the same one."""
    if (kind, edits) not in _MADE:
        _MADE[kind, edits] = _subclass(kind, edits)
    return _MADE[kind, edits]


def _subclass(kind: Any, edits: frozenset[Edit]) -> type[nn.Module]:
    changed = {edit[0] for edit in edits}
    own = {m.name: m for m in methods(kind) if m.plain and m.name in changed}
    digest = _digest(own)

    def reduce(self: nn.Module, protocol: Any) -> Any:  # a class made in a function cannot be found by its name
        return _restore, (kind, edits, digest), self.__getstate__()

    members: dict[str, Any] = {name: _function(method, edits) for name, method in own.items()}
    members |= {"__reduce_ex__": reduce, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    members["__doc__"] = kind.__doc__
    made: type[nn.Module] = type(kind)(kind.__name__, (kind,), members)
    return made


def _restore(kind: type[nn.Module], edits: frozenset[Edit], digest: str) -> nn.Module:
    now = {m.name: m for m in methods(kind) if m.plain and m.name in {edit[0] for edit in edits}}
    if _digest(now) != digest:
        raise ConversionError(
            f"{kind.__module__}.{kind.__qualname__} has another source than when the model was accelerated and saved; "
            f"expected the same: save the state dict, and accelerate the model that it was loaded into"
        )
    made = _rewritten(kind, edits)
    module: nn.Module = made.__new__(made)
    return module


def _digest(own: dict[str, Method]) -> str:
    text = "\0".join(f"{name}\0{method.text}" for name, method in sorted(own.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def _function(method: Method, edits: frozenset[Edit]) -> FunctionType:
    """The method after the edits."""
    wanted = {(edit[1:5], edit[5]) for edit in edits if edit[0] == method.name}
    tree = _Editor(wanted).visit(method.parse())
    text = ast.unparse(ast.fix_missing_locations(tree))
    name = f"<{method.where}, accelerated, {hashlib.sha256(text.encode()).hexdigest()[:8]}>"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    parsed = ast.parse(text).body[0]
    assert isinstance(parsed, ast.FunctionDef)
    code, old = compiled(parsed, method.owner, name), method.function
    new = FunctionType(code, old.__globals__, old.__name__, old.__defaults__, old.__closure__)
    new.__kwdefaults__, new.__annotations__, new.__doc__ = old.__kwdefaults__, old.__annotations__, old.__doc__
    new.__qualname__, new.__module__ = old.__qualname__, old.__module__
    vars(new).update(vars(old))
    return new


class _Editor(ast.NodeTransformer):
    def __init__(self, wanted: set[tuple[tuple[int, int, int, int], str]]) -> None:
        self.wanted = wanted

    def visit_Call(self, node: ast.Call) -> ast.AST:
        skipped = (place(node), "skip") in self.wanted
        self.generic_visit(node)
        return node.args[0] if skipped else node

    def visit_If(self, node: ast.If) -> ast.AST:
        at = place(node)
        self.generic_visit(node)
        for branch in ("body", "orelse"):
            if (at, branch) in self.wanted:
                setattr(node, branch, _refusal(ast.unparse(node.test), branch == "body").body)
        return node


def _refusal(test: str, value: bool) -> ast.Module:
    message = f"`{test}` is {value} now, and was not when groupnorm.accelerate_ was called: undo it, and call it again"
    return ast.parse(f"raise RuntimeError({message!r})")
