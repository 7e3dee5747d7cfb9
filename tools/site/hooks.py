"""What the site takes from the catalog, so that a new norm needs no line here; and formulas, as MathML."""

import re
from contextlib import suppress
from html import unescape
from pathlib import Path
from typing import Any

import jinja2
from math_core import LatexError, LatexToMathML
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

from groupnorm.lab.plots.axis_diagrams import svg
from groupnorm.nn.catalog import catalog
from groupnorm.nn.norm import WEIGHTS, Norm

MATH = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.S)
WIDE = re.compile(r"\\q?quad(?![a-zA-Z])")
NUMBERS = {
    "groups": [(":8", "with 8 groups"), (":c16", "with 16 channels a group")],
    "examples": [(":4", "with 4 samples")],
    "window": [(":3", "with a window of 3")],
    "parts": [(":4", "with 4 groups")],
    "": [],
}
"""What the number in a spec means, by what it sets."""

_to_mathml = LatexToMathML()


def ours(row: Norm) -> bool:
    """Whether the layer is of this package, not of torch."""
    return row.layer.__module__.startswith("groupnorm.")


_templates = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)
_templates.globals |= {"ours": ours, "svg": svg}
_parts: Any = _templates.get_template("norms.html").module


def on_config(config: Any) -> Any:
    """The cards follow in the navigation, in the order of the catalog."""
    norms = next(section["Norms"] for section in config.nav if "Norms" in section)
    norms += [{row.title: card(row)} for row in catalog()]
    return config


def on_files(files: Files, **_: Any) -> Files:
    """A norm without its card is an error."""
    missing = [f"docs/{card(row)}" for row in catalog() if files.get_file_from_path(card(row)) is None]
    if missing:
        raise PluginError(f"{', '.join(missing)}: missing; every row of the catalog has a card")
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The layers of the package, for the API."""
    layers = sorted({row.layer.__name__ for row in catalog() if ours(row)})
    return markdown.replace("<!-- layers -->", "\n\n".join(f"::: groupnorm.nn.{name}" for name in layers))


def on_page_content(html: str, page: Page, **_: Any) -> str:
    """Formulas on every page, facts and pictures on a card, all of them on the overview."""
    html = MATH.sub(lambda found: formula(found[2], block=found[1] == "div", where=page.file.src_uri), html)
    for row in catalog():
        if page.file.src_uri == card(row):
            html = html.replace("</h1>", f"</h1>\n{_parts.head(row, specs(row))}", 1)
    for name in ("gallery", "table"):
        if f"<!-- {name} -->" in html:
            html = html.replace(f"<!-- {name} -->", getattr(_parts, name)(catalog()))
    return html


def card(row: Norm) -> str:
    """The page of a norm."""
    return f"cards/{row.spec}.md"


def specs(row: Norm) -> list[tuple[str, str]]:
    """How the norm is written, and what each form means."""
    if row.of is WEIGHTS:
        return [(f"{row.spec}+gn", "or before any other norm")]
    return [(row.spec, ""), *((row.spec + number, text) for number, text in NUMBERS[row.number])] if row.make else []


def formula(latex: str, block: bool, where: str) -> str:
    """A formula as MathML; one that cannot be converted fails the build.

    Browsers do not break formulas into lines, so that the parts between wide spaces become formulas of their own.
    """
    latex = unescape(latex)
    try:
        if not block:
            return mathml(latex, block)
        with suppress(LatexError):  # the space is inside of something
            return f'<div class="formula">{"".join(mathml(part, block) for part in WIDE.split(latex))}</div>'
        return f'<div class="formula">{mathml(latex, block)}</div>'
    except LatexError as error:
        raise PluginError(f"{where}: {error} in the formula {latex}") from error


def mathml(latex: str, block: bool) -> str:
    """A formula as MathML."""
    return str(_to_mathml.convert_with_local_state(latex, displaystyle=block))
