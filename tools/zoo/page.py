"""The page of the matrix from its records."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jinja2

_templates = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    autoescape=True,
    undefined=jinja2.StrictUndefined,
)


def render(environment: Mapping[str, Any], rows: list[dict[str, Any]], left_out: Iterable[tuple[str, str, str]]) -> str:
    """The page as Markdown.

    Args:
        environment: versions and machine.
        rows: of all networks, in the order of the page.
        left_out: library, networks, and why they are not in the matrix.
    """
    libraries: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        libraries.setdefault(row["library"], []).append(row)
    return _templates.get_template("page.md").render(
        environment=environment, libraries=libraries, rows=rows, left_out=list(left_out)
    )


def norms(row: Mapping[str, Any]) -> str:
    """What there was, such as "72 BatchNorm2d, 7 GroupNorm kept"."""
    parts = [f"{count} {name}" for name, count in _most_first(row["norms"])]
    return ", ".join(parts + [f"{count} {name} kept" for name, count in _most_first(row["kept"])])


def becomes(row: Mapping[str, Any]) -> list[tuple[int, str]]:
    """How many became what, most groups first."""
    groups = sorted(row["becomes"].items(), key=lambda item: -int(item[0].partition(":")[2]))
    return [(count, spec) for spec, count in groups]


def replaced(rows: Iterable[Mapping[str, Any]]) -> int:
    """How many norms were replaced in all."""
    return sum(sum(row["norms"].values()) for row in rows)


def _most_first(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


_templates.globals |= {"norms": norms, "becomes": becomes, "replaced": replaced}
