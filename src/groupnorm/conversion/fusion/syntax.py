"""Small questions to the syntax tree of a method."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from groupnorm.conversion.fusion.source import methods, names

_DYNAMIC = {"getattr", "vars", "eval", "exec", "locals", "__dict__", "_modules", "get_submodule"} | {
    f"{named}{which}" for named in ("", "named_") for which in ("children", "modules")
}


def reaches(kind: type) -> str:
    """Why the forward of a class may use any child: it, or a method that it mentions, looks them up by other means."""
    every, reached = methods(kind), {"forward"}
    while True:
        new = {m.name for m in every if any(m.name in names(r.function.__code__) for r in every if r.name in reached)}
        if new <= reached:
            break
        reached |= new
    for method in every:
        by = names(method.function.__code__) & _DYNAMIC if method.name in reached else set()
        if by and method.text:
            tree = method.parse()
            parents = parents_in(tree)
            by = {looks_up(node, parents) for node in ast.walk(tree)} - {""}
        if by:
            return f"{method.where} looks up attributes by {min(by)}"
    return ""


def place(node: ast.expr | ast.stmt) -> tuple[int, int, int, int]:
    """Where a node stands in its text."""
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    return node.lineno, node.col_offset, node.end_lineno, node.end_col_offset


def harmless(node: ast.Attribute, parents: dict[ast.AST, ast.AST]) -> bool:
    """Whether a mention of a module does not call it: a look at something of it, or whether it is there."""
    above = parents.get(node)
    if isinstance(above, ast.Attribute):
        return above.attr != "forward" and not above.attr.startswith(("_", "register_"))
    if isinstance(above, ast.Call) and isinstance(above.func, ast.Name) and above.func.id in ("getattr", "isinstance"):
        name = above.args[1] if len(above.args) > 1 else None
        return above.func.id == "isinstance" or (isinstance(name, ast.Constant) and name.value in ("weight", "bias"))
    if isinstance(above, ast.Compare):
        return all(isinstance(op, (ast.Is, ast.IsNot)) for op in above.ops)
    if isinstance(above, ast.UnaryOp):
        return isinstance(above.op, ast.Not)
    return isinstance(above, (ast.If, ast.IfExp)) and above.test is node


def parents_in(tree: ast.AST) -> dict[ast.AST, ast.AST]:
    """The node above each node."""
    return {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}


def looks_up(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> str:
    """The name by which a node looks up an attribute that the text does not name; "" if it does not."""
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    call = parents.get(node)
    if name == "getattr" and isinstance(call, ast.Call) and call.func is node:
        constant = len(call.args) > 1 and isinstance(call.args[1], ast.Constant)
        return "" if constant else name
    return name if name in _DYNAMIC else ""


def blocks(node: ast.AST) -> Iterator[list[ast.stmt]]:
    for name in ("body", "orelse", "finalbody"):
        block = getattr(node, name, None)
        if isinstance(block, list):
            yield block


def target(statement: ast.stmt) -> str:
    """The name of ``name = ...``, "" of other statements."""
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1 and isinstance(statement.targets[0], ast.Name):
        return statement.targets[0].id
    return ""


def stores(node: ast.AST, name: str) -> list[ast.Name]:
    return [n for n in ast.walk(node) if isinstance(n, ast.Name) and n.id == name and isinstance(n.ctx, ast.Store)]


def loads(node: ast.AST, name: str) -> list[ast.Name]:
    return [n for n in ast.walk(node) if isinstance(n, ast.Name) and n.id == name and not isinstance(n.ctx, ast.Store)]
