"""The docstrings' reStructuredText, roles and formulas, as the Markdown of the site."""

import re
from textwrap import dedent
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|data|mod|attr):`~?([^`]+)`")
FORMULA = re.compile(r"^( *)\.\. math::(.*(?:\n(?:\1 +\S.*| *(?=\n)))*)", re.M)
EXAMPLE = re.compile(r"^Example::$", re.M)
SHAPE = re.compile(r"^Shape:\n((?: +\S.*\n?)+)", re.M)


class Markdown(griffe.Extension):
    """Rewrites each docstring when it is loaded."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Links where the name is on the page, code where it is not."""
        if obj.docstring is None:
            return

        def link(found: re.Match[str]) -> str:
            name = found[1]
            path = name if "." in name else f"{obj.module.path}.{name}"
            return f'<autoref optional identifier="{path}"><code>{name}</code></autoref>'

        def formula(found: re.Match[str]) -> str:
            first, _, rest = found[2].partition("\n")
            body = "\n".join(part for part in (first.strip(), dedent(rest).strip()) if part)
            return f"\n$$\n{body}\n$$\n"

        text = FORMULA.sub(formula, ROLE.sub(link, obj.docstring.value))
        text = EXAMPLE.sub("Example:", re.sub(r":math:`([^`]+)`", r"$\1$", text))
        obj.docstring.value = SHAPE.sub(lambda found: f"Shape: {dedent(found[1]).strip()}\n", text)
