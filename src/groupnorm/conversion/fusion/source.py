"""The text of a class's methods, where it is known to be what runs."""

from __future__ import annotations

import ast
import functools
import inspect
import linecache
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Method:
    """A function of a class.

    Attributes:
        name: in the class.
        function: itself, below its decorators.
        owner: the class that has it.
        plain: calling the method of the class is calling this function: it is neither decorated nor overridden.
        text: its source; "" where it cannot be read, or is not what runs.
    """

    name: str
    function: FunctionType
    owner: type
    plain: bool
    text: str

    @property
    def where(self) -> str:
        """Class and method."""
        return f"{self.owner.__name__}.{self.name}"

    def parse(self) -> ast.FunctionDef:
        """A new tree of the text."""
        tree = ast.parse(self.text).body[0]
        assert isinstance(tree, ast.FunctionDef)
        return tree


_READ: dict[type, tuple[Method, ...]] = {}


def methods(kind: type) -> tuple[Method, ...]:
    """The methods of a module's class and its bases that may run after it was made; not those of torch."""
    if kind not in _READ:
        _READ[kind] = _methods(kind)
    return _READ[kind]


def _methods(kind: type) -> tuple[Method, ...]:
    found = []
    for owner in kind.__mro__:
        if owner is not object and owner.__module__.split(".")[0] != "torch":
            for name, value in vars(owner).items():
                for function in _functions(value) if name != "__init__" else ():
                    plain = value is function and getattr(kind, name, None) is function
                    found.append(Method(name, function, owner, plain, _text(function)))
    return tuple(method for method in found if _reachable(method, kind, found))


def _reachable(method: Method, kind: type, every: list[Method]) -> bool:
    """Whether a method may be called: it is not overridden, or another may call it as that of a base."""
    if getattr(kind, method.name, None) is getattr(method.owner, method.name, None):
        return True
    named = [names(other.function.__code__) for other in every]
    return any(method.name in each and each & {"super", method.owner.__name__} for each in named)


def names(code: CodeType) -> set[str]:
    """Names of the attributes and globals in a code, and its strings: of what it may reach by ``getattr``, too."""
    found = {*code.co_names, *(c for c in code.co_consts if isinstance(c, str))}
    return found.union(*(names(c) for c in code.co_consts if isinstance(c, CodeType)))


def compiled(tree: ast.FunctionDef, owner: type, filename: str) -> CodeType:
    """The code of a function as in the body of a class."""
    body = ast.ClassDef(owner.__name__, bases=[], keywords=[], body=[tree], decorator_list=[])
    if hasattr(body, "type_params"):
        body.type_params = []
    module = ast.fix_missing_locations(ast.Module(body=[body], type_ignores=[]))
    outer = compile(module, filename, "exec", dont_inherit=True)
    return _inner(_inner(outer, owner.__name__), tree.name)


def _inner(code: CodeType, name: str) -> CodeType:
    return next(c for c in code.co_consts if isinstance(c, CodeType) and c.co_name == name)


def _functions(value: Any, above: tuple[Any, ...] = ()) -> Iterator[FunctionType]:
    """The functions that a value of a class runs, as far as they can be found: also those under decorators."""
    if any(value is outer for outer in above):  # a function that closes over itself
        return
    above = (*above, value)
    if isinstance(value, (staticmethod, classmethod)):
        yield from _functions(value.__func__, above)
    elif isinstance(value, property):
        for part in (value.fget, value.fset):
            yield from _functions(part, above)
    elif isinstance(value, functools.cached_property):
        yield from _functions(value.func, above)
    elif isinstance(value, FunctionType):
        yield value
        for cell in value.__closure__ or ():
            try:
                inner = cell.cell_contents
            except ValueError:  # empty
                continue
            if isinstance(inner, FunctionType):
                yield from _functions(inner, above)


def _text(function: FunctionType) -> str:
    """The source, if compiling it gives the very code that runs: files change under a running process."""
    code = function.__code__
    try:
        text = textwrap.dedent(inspect.getsource(function))
        if _codes("".join(linecache.getlines(code.co_filename))).get((code.co_qualname, code.co_firstlineno)) != code:
            return ""
        return text if isinstance(ast.parse(text).body[0], ast.FunctionDef) else ""
    except (OSError, TypeError, SyntaxError):
        return ""


@functools.lru_cache(maxsize=64)
def _codes(text: str) -> dict[tuple[str, int], CodeType]:
    """All codes in a file, by name and line."""
    codes, todo = {}, [compile(text, "<source>", "exec", dont_inherit=True)]
    while todo:
        code = todo.pop()
        codes[code.co_qualname, code.co_firstlineno] = code
        todo += [c for c in code.co_consts if isinstance(c, CodeType)]
    return codes


def is_sequential(module: nn.Module) -> bool:
    """Whether calling a module is calling its children one after the other."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward
