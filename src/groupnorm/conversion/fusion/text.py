"""Rewrites a method so that a norm hands its input on to the activation after it, by :func:`hold` and :func:`flow`.

Only what means the same by the rules of Python alone is rewritten, whatever the modules are. Each call stays where it
was, so that names are looked up and arguments computed in the same order::

    self.act(self.norm(x))              ->  flow(self.act, hold(self.norm, x))

    h = self.norm(x)                    ->  held = hold(self.norm, x)
    h = self.act(h)                         h = flow(self.act, held)

    if ...:                             ->  if ...:
        h = self.norm(x)                        held = hold(self.norm, x)
    h = self.act(h)                             h = flow(self.act, held)
                                            else:
                                                h = self.act(h)

In the second form the next statement may also use the value, as ``h = self.conv(self.act(h))``, and give it another
name or return it, if ``h`` is read nowhere else. Within ``try`` that form is left alone: a handler may read ``h``.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable
from typing import Any

HOLD, FLOW = "_groupnorm_hold", "_groupnorm_flow"
"""What the method knows :func:`hold` and :func:`flow` as."""

_HELD = "_groupnorm_held"
"""The variable between two statements."""

Calls = Callable[[ast.expr], bool]


class Rewriter(ast.NodeTransformer):
    """Rewrites one method.

    Args:
        method: its tree, which changes.
        is_norm: whether a called expression is a norm to begin with.
        is_activation: whether it is an activation to end with.
        passes: whether it hands on its input.

    Attributes:
        taken: the norms that are held back, and the activations that follow.
    """

    def __init__(self, method: ast.FunctionDef, is_norm: Calls, is_activation: Calls, passes: Calls) -> None:
        self.method, self.is_norm, self.is_activation, self.passes = method, is_norm, is_activation, passes
        self.me = method.args.args[0].arg if method.args.args else ""
        self.taken: list[tuple[ast.expr, ast.expr]] = []

    def rewrite(self) -> None:
        """Change the tree."""
        if self.me and not _reads_names_itself(self.method):
            self.method.body = self._block(self.method.body)
            self.method.body = [self.visit(statement) for statement in self.method.body]

    # An activation right around a norm.

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        held = [_argument(node)]
        while isinstance(held[0], ast.Call) and self.passes(held[0].func):
            held = [_argument(held[0]), *held]
        norm = held[0]
        if self.is_activation(node.func) and isinstance(norm, ast.Call) and _argument(norm) and self.is_norm(norm.func):
            self._take(held, node)
        return node

    # An activation in the statement after a norm.

    def _block(self, block: list[ast.stmt]) -> list[ast.stmt]:
        done: list[ast.stmt] = []
        rest = list(block)
        while rest:
            statement = rest.pop(0)
            if (
                isinstance(statement, ast.If)
                and rest
                and (name := self._activated(rest[0]))
                and self._ends(statement, name)
            ):
                act = rest.pop(0)
                for branch in (statement.body, statement.orelse):
                    if not (branch and isinstance(branch[-1], (ast.Return, ast.Raise, ast.Continue, ast.Break))):
                        branch.append(copy.deepcopy(act))
            for field in ("body", "orelse", "finalbody"):
                inner = getattr(statement, field, None)
                if isinstance(inner, list) and not isinstance(statement, (*_SCOPES, ast.Try, ast.TryStar)):
                    setattr(statement, field, self._block(inner))
            self._join(statement, rest)
            done.append(statement)
        return done

    def _join(self, statement: ast.stmt, rest: list[ast.stmt]) -> None:
        """Let a norm in a statement be held back for the activation in one of the next, where it can be."""
        name, value = _assigned(statement)
        if not name or _argument(value) is None or not self.is_norm(value.func) or self._shared(name):  # type: ignore[union-attr]
            return
        after = 0
        while after < len(rest) and _assigned(rest[after])[0] == name and self._on(rest[after], name, self.passes):
            after += 1
        act = self._inner(rest[after], name) if after < len(rest) else None
        if act is None or not (_assigned(rest[after])[0] == name or len(_reads(self.method, name)) == after + 1):
            return
        held: list[Any] = [statement, *rest[:after]]
        for before, user in zip(held, [*(_value(s) for s in held[1:]), act], strict=True):
            before.targets = [ast.Name(_HELD, ast.Store())]
            user.args = [ast.Name(_HELD, ast.Load())]
        self._take([_value(s) for s in held], act)

    def _inner(self, statement: ast.stmt, name: str) -> ast.Call | None:
        """The call of an activation on ``name`` alone, which is all that a statement begins with; None where not."""
        if not (isinstance(statement, ast.Return) or _assigned(statement)[0]):
            return None
        call = _value(statement)
        while (inner := _argument(call)) is not None and _plain(call.func):
            if isinstance(inner, ast.Name):
                return call if inner.id == name and self.is_activation(call.func) else None
            call = inner
        return None

    def _activated(self, statement: ast.stmt) -> str:
        """The name in ``name = self.act(name)``; "" of other statements."""
        name, _ = _assigned(statement)
        return name if name and self._on(statement, name, self.is_activation) else ""

    def _ends(self, statement: ast.If, name: str) -> bool:
        """Whether a branch ends with ``name = self.norm(...)``."""
        for branch in (statement.body, statement.orelse):
            if branch and isinstance(branch[-1], ast.If) and self._ends(branch[-1], name):
                return True
            last, value = _assigned(branch[-1]) if branch else ("", None)
            if last == name and isinstance(value, ast.Call) and self.is_norm(value.func):
                return True
        return False

    def _on(self, statement: ast.stmt, name: str, wanted: Calls) -> bool:
        """Whether a statement gives, or returns, what a wanted call makes of ``name`` alone."""
        if not (isinstance(statement, ast.Return) or _assigned(statement)[0]):
            return False
        value = _value(statement)
        argument = _argument(value)
        return isinstance(argument, ast.Name) and argument.id == name and wanted(value.func)

    def _shared(self, name: str) -> bool:
        """Whether a name is not of this function alone."""
        return any(isinstance(n, (ast.Global, ast.Nonlocal)) and name in n.names for n in ast.walk(self.method))

    def _take(self, held: list[Any], act: ast.Call) -> None:
        """Let the norm that is called first, and what passes its output on, be held back for the activation."""
        self.taken.append((held[0].func, act.func))
        for call, name in (*((call, HOLD) for call in held), (act, FLOW)):
            call.func, call.args = ast.Name(name, ast.Load()), [call.func, *call.args]


_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def _argument(call: Any) -> ast.expr | None:
    """The argument of a call that has this one alone."""
    if isinstance(call, ast.Call) and len(call.args) == 1 and not call.keywords:
        return None if isinstance(call.args[0], ast.Starred) else call.args[0]
    return None


def _plain(node: ast.AST) -> bool:
    """Whether an expression only looks up names: ``self.conv``."""
    return isinstance(node, ast.Name) or (isinstance(node, ast.Attribute) and _plain(node.value))


def _assigned(statement: ast.stmt) -> tuple[str, ast.expr | None]:
    """Name and value of ``name = value``, "" and None of other statements."""
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1 and isinstance(statement.targets[0], ast.Name):
        return statement.targets[0].id, statement.value
    return "", None


def _value(statement: ast.stmt) -> Any:
    return getattr(statement, "value", None)


def _reads(tree: ast.AST, name: str) -> list[ast.AST]:
    """Where a name is read or deleted."""
    plain = [n for n in ast.walk(tree) if isinstance(n, ast.Name) and n.id == name and not isinstance(n.ctx, ast.Store)]
    in_place = [n for n in ast.walk(tree) if isinstance(n, ast.AugAssign) and _target(n) == name]
    return [*plain, *in_place]


def _target(statement: ast.AugAssign) -> str:
    return statement.target.id if isinstance(statement.target, ast.Name) else ""


def _reads_names_itself(tree: ast.AST) -> bool:
    names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    return bool(names & {"locals", "eval", "exec", "vars", "dir"})
