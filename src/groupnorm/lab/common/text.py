"""Text that every file and terminal takes."""

from __future__ import annotations

from typing import Any


def readable(value: Any) -> Any:
    """A plain value whose strings hold no lone surrogate: each becomes its escape, ``\\udce9``.

    Python reads a file name that is not UTF-8 as a string with such characters, and an error may quote it. Nothing can
    encode them: no table, no report, no identity.

    Args:
        value: a string, or a list, tuple or dictionary that may hold some; anything else comes back as it is.
    """
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {readable(key): readable(part) for key, part in value.items()}
    return type(value)(map(readable, value)) if isinstance(value, list | tuple) else value
