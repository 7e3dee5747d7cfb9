"""How results are shown: tables as HTML, which notebooks show for what has ``_repr_html_``, and counts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


def html_table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A title and a table, aligned to the left; the texts are escaped."""
    lines = [_row("th", head), *(_row("td", row) for row in rows)]
    return f"<p>{escape(title)}</p>\n<table>\n{chr(10).join(lines)}\n</table>"


def count_of(number: int, thing: str) -> str:
    """A number of things in words: "1 norm", "2 norms"."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f'<{tag} style="text-align: left">{escape(cell)}</{tag}>' for cell in cells) + "</tr>"
