"""What the records of a training and the request of a run have to hold to be read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import ValidationError

from groupnorm.lab.cell import Cell, Status

_NUMBERS = ("epoch", "step", "train_error", "error", "seconds", "images_per_second")
_ENDINGS = tuple(status for status in get_args(Status) if status not in ("pending", "running"))


def problem_of(record: Mapping[str, Any]) -> str:
    """What a record of a training lacks, with what was expected; "" when it can be read."""
    kind = record["kind"]
    if kind == "start":
        return _not_a(dict, record, "environment") or _not_a_number(record, "time")
    if kind == "epoch":
        return next(filter(None, (_not_a_number(record, name) for name in _NUMBERS)), "")
    if kind != "end":
        return ""
    if record.get("status") not in _ENDINGS:
        return f"'status' of an end is {record.get('status')!r}; expected one of {', '.join(_ENDINGS)}"
    return _not_a(str, record, "reason")


def cells_of(request: Mapping[str, Any]) -> list[Cell]:
    """The cells of a request.

    Raises:
        ValueError: they are not what this version writes. Says what was expected.
    """
    if not isinstance(request.get("cells"), list):
        raise ValueError("it holds no list of cells")
    found = []
    for number, fields in enumerate(request["cells"]):
        try:
            found.append(Cell.model_validate(fields))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise ValueError(f"cell {number}: {place + ': ' if place else ''}{first['msg']}") from None
    return found


def _not_a(kind: type, record: Mapping[str, Any], name: str) -> str:
    value = record.get(name)
    if isinstance(value, kind):
        return ""
    words = {dict: "a dictionary", str: "a text"}[kind]
    return f"{name!r} of {_article(record)} is {value!r}; expected {words}"


def _not_a_number(record: Mapping[str, Any], name: str) -> str:
    value = record.get(name)
    if isinstance(value, int | float) and math.isfinite(value):
        return ""
    return f"{name!r} of {_article(record)} is {value!r}; expected a finite number"


def _article(record: Mapping[str, Any]) -> str:
    return f"an {record['kind']}" if record["kind"] in ("epoch", "end") else f"a {record['kind']}"
