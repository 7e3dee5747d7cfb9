"""The text of a method, where it is known to be what runs, and a method made from a changed text."""

from __future__ import annotations
import __future__

import ast
import functools
import hashlib
import inspect
import linecache
import textwrap
from types import CellType, CodeType, FunctionType
from typing import Any

_FUTURES = sum(getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)


def parse(function: FunctionType) -> ast.FunctionDef | None:
    """The syntax tree of a function; None where its text cannot be read, or is not what runs, as in a changed file."""
    code = function.__code__
    try:
        text = textwrap.dedent(inspect.getsource(code))
        whole = "".join(linecache.getlines(code.co_filename))
        if _codes(whole).get((code.co_qualname, code.co_firstlineno)) != code:
            return None
        tree = ast.parse(text).body[0]
    except (OSError, TypeError, SyntaxError, IndexError):
        return None
    return tree if isinstance(tree, ast.FunctionDef) and not tree.decorator_list else None


def remade(function: FunctionType, tree: ast.FunctionDef, names: dict[str, Any]) -> FunctionType:
    """The function with another tree.

    Args:
        function: a method; what it closes over, and its globals, the new one has as well.
        tree: what it shall do.
        names: what the tree mentions besides.
    """
    text = ast.unparse(ast.fix_missing_locations(tree))
    file = f"<{function.__qualname__}, accelerated, {hashlib.sha256(text.encode()).hexdigest()[:8]}>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)  # for tracebacks
    code = function.__code__
    cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
    cells |= {name: CellType(value) for name, value in names.items()}
    # A class around it, for super() and names with two underscores; a function around that, for what it closes over.
    owner = function.__qualname__.split(".")[-2] if "." in function.__qualname__ else ""
    around = ", ".join(name for name in cells if name != "__class__")
    within = [f"def around({around})", *([f"class {owner}"] if owner.isidentifier() else [])]
    shell = ast.parse(": \n".join(" " * depth + line for depth, line in enumerate([*within, "pass"])))
    innermost: Any = shell
    for _ in within:
        innermost = innermost.body[0]
    innermost.body = ast.parse(text).body  # lines as in the text, which tracebacks show
    flags = code.co_flags & _FUTURES
    new = compile(ast.fix_missing_locations(shell), file, "exec", flags=flags, dont_inherit=True)
    for name in (*(part.split()[1].split("(")[0] for part in within), tree.name):
        new = next(c for c in new.co_consts if isinstance(c, CodeType) and c.co_name == name)
    closure = tuple(cells[name] for name in new.co_freevars)
    made = FunctionType(new, function.__globals__, function.__name__, function.__defaults__, closure)
    made.__kwdefaults__, made.__annotations__ = function.__kwdefaults__, function.__annotations__
    made.__doc__, made.__module__, made.__qualname__ = function.__doc__, function.__module__, function.__qualname__
    vars(made).update(vars(function))
    return made


@functools.lru_cache(maxsize=64)
def _codes(text: str) -> dict[tuple[str, int], CodeType]:
    """All codes of a file, by name and line."""
    codes, todo = {}, [compile(text, "<source>", "exec", dont_inherit=True)]
    while todo:
        code = todo.pop()
        codes[code.co_qualname, code.co_firstlineno] = code
        todo += [c for c in code.co_consts if isinstance(c, CodeType)]
    return codes
