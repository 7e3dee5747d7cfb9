"""Which norms a conversion is of: globs, regular expressions, classes and functions, and whether they fit any."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from groupnorm.errors import ArgumentError

Where = str | re.Pattern[str] | type[nn.Module] | Callable[[str, nn.Module], bool] | Iterable[Any] | None


def checked(where: Where) -> Where:
    """``where`` as it is, a collection as a list.

    Raises:
        ArgumentError: it is no condition, or a function of something else.
    """
    if where is None or isinstance(where, (str, re.Pattern, type)):
        return where
    if isinstance(where, Iterable) and not isinstance(where, nn.Module):
        return [checked(part) for part in where]
    if not callable(where) or isinstance(where, nn.Module):
        raise ArgumentError(
            f"where={where!r}; expected a glob, a compiled regular expression, a class, a function of path and "
            f"module, or a collection of these"
        )
    check_takes(where, "where", "path", "module")
    return where


def selects(where: Where, path: str, module: nn.Module) -> bool:
    """Whether a condition that was checked holds for a module."""
    if where is None:
        return True
    if isinstance(where, (str, re.Pattern)):
        return fits(where, path)
    if isinstance(where, type):
        return isinstance(module, where)
    if callable(where):
        return bool(where(path, module))
    return any(selects(part, path, module) for part in where)


def fits(pattern: str | re.Pattern[str], path: str) -> bool:
    """Whether a glob is that of a path, or a compiled regular expression is found in it."""
    return pattern.search(path) is not None if isinstance(pattern, re.Pattern) else fnmatchcase(path, pattern)


def check_fits_some(name: str, patterns: Iterable[Any], paths: Sequence[str]) -> None:
    """Raise where a pattern fits none of the norms at ``paths``; without norms there is nothing to fit."""
    for pattern in patterns if paths else ():
        if isinstance(pattern, (str, re.Pattern)) and not any(fits(pattern, path) for path in paths):
            shown = pattern if isinstance(pattern, str) else pattern.pattern
            near = get_close_matches(shown, dict.fromkeys(choice for path in paths for choice in _choices(path)), n=1)
            hint = f"did you mean {near[0]!r}?" if near else "see the paths in groupnorm.plan(model)"
            raise ArgumentError(
                f"{name}={shown!r} fits no norm of the model; expected a pattern of one of {len(paths)} norms, "
                f"such as {paths[0]!r}: {hint}"
            )


def check_takes(function: Callable[..., object], name: str, *arguments: str) -> None:
    """Raise unless a function can be called with these positional arguments."""
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        raise ArgumentError(
            f"{name}={function!r} cannot be called with {len(arguments)} arguments; expected a function of "
            f"{' and '.join(arguments)}: lambda {', '.join(arguments)}: ..."
        ) from None
    except ValueError:  # of a builtin whose arguments nothing tells
        return


def _choices(path: str) -> list[str]:
    """The path, and the globs of what contains it."""
    names = path.split(".")
    return [path, *(f"{'.'.join(names[:count])}.*" for count in range(1, len(names)))]
