"""What the records of a training and the request of a run have to hold to be read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import ValidationError

from groupnorm.lab.common.trial import Cell, Status

_NUMBERS = ("epoch", "step", "seconds")
_ENDINGS = tuple(status for status in get_args(Status) if status not in ("pending", "running"))


def problem_of(record: Mapping[str, Any]) -> str:
    """What a record of a training lacks, with what was expected; "" when it can be read."""
    kind = record["kind"]
    if kind == "start":
        return _not_a(dict, record, "environment") or _not_a_number(record, "time")
    if kind == "epoch":
        metric = record.get("metric", "error")  # of a task other than classification
        rate = next((name for name in record if name.endswith("_per_second")), "images_per_second")
        numbers = (*_NUMBERS, f"train_{metric}", metric, rate)
        return next(filter(None, (_not_a_number(record, name) for name in numbers)), "")
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
    found: list[Cell] = []
    numbers: dict[str, int] = {}  # by identity
    for number, fields in enumerate(request["cells"]):
        try:
            found.append(Cell.model_validate(fields))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise ValueError(f"cell {number}: {place + ': ' if place else ''}{first['msg']}") from None
        if (same := numbers.setdefault(found[-1].id, number)) != number:
            raise ValueError(f"cell {number}: it is cell {same} again")
    return found


def _not_a(kind: type[Any], record: Mapping[str, Any], name: str) -> str:
    words = "a text" if kind is str else "a dictionary"
    return "" if isinstance(record.get(name), kind) else _wrong(record, name, words)


def _not_a_number(record: Mapping[str, Any], name: str) -> str:
    value = record.get(name)
    number = isinstance(value, int | float) and math.isfinite(value)
    return "" if number else _wrong(record, name, "a finite number")


def _wrong(record: Mapping[str, Any], name: str, expected: str) -> str:
    article = "a" if record["kind"] == "start" else "an"
    return f"{name!r} of {article} {record['kind']} is {record.get(name)!r}; expected {expected}"
