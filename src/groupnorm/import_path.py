"""From "package.module:name" to the object that the user wrote."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from groupnorm.errors import ArgumentError


def resolve(reference: str, kind: str) -> Any:
    """Import ``package.module:name``, looking in the current folder first, as ``python -m`` does.

    Args:
        reference: a module and a name in it, with a colon between.
        kind: what it should be, for messages.

    Raises:
        ArgumentError: the module cannot be imported, or has no such name.
    """
    module_name, _, name = reference.partition(":")
    if module_name == "__main__":
        raise ArgumentError(
            f"{kind} {reference!r} lies in the script that is running, which the worker processes cannot import; "
            f"expected package.module:name: put it into a file of its own"
        )
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (Exception, SystemExit) as error:  # the user's module may raise anything while it is imported
        raise ArgumentError(
            f"{kind} {reference!r} cannot be imported: {type(error).__name__}: {error}; expected "
            f"package.module:name, importable from the current folder or PYTHONPATH"
        ) from error
    if not callable(found):
        raise ArgumentError(f"{kind} {reference!r} is of type {type(found).__name__}; expected a function or class")
    return found
