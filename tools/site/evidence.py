"""What the site takes from the records of the experiments: the ledger of claims, each experiment with its picture."""

from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from mkdocs.structure.files import File, Files

from groupnorm.lab.analysis.labels import label
from groupnorm.lab.analysis.statistics import estimate
from groupnorm.lab.experiments import EXPERIMENTS, conversion
from groupnorm.lab.experiments.framework.evidence import Evidence
from groupnorm.lab.experiments.ledger import RECORDS, as_json, evidence, ledger
from groupnorm.lab.plots.style import encode, house_style

_templates = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)


def interval(effect: dict[str, Any]) -> str:
    """The mean and the interval of an effect, such as ``+1.2 [+0.3, +2.1]``."""
    if effect.get("mean") is None:
        return "no value"
    bounds = f" [{effect['low']:+.3g}, {effect['high']:+.3g}]" if effect["low"] is not None else ""
    return f"{effect['mean']:+.3g}{bounds}"


_templates.globals |= {"interval": interval}
_parts: Any = _templates.get_template("evidence.html").module


def on_files(files: Files, config: Any) -> Files:
    """The evidence of each experiment that was run, as a picture and as it was recorded."""
    for name, found in _found().items():
        with house_style():
            picture = encode(EXPERIMENTS[name].figure(found), "png")
        files.append(File.generated(config, f"evidence/{name}.png", content=picture))
    for path in RECORDS.glob("*.jsonl"):
        files.append(File.generated(config, f"evidence/{path.name}", content=path.read_bytes()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The ledger, the experiments and the stages of a conversion, where a page asks for them."""
    if "<!-- ledger -->" in markdown:
        markdown = markdown.replace("<!-- ledger -->", _parts.ledger(as_json(ledger())))
    if "<!-- stages -->" in markdown:
        markdown = markdown.replace("<!-- stages -->", stages(evidence("conversion")))
    if "<!-- experiments -->" in markdown:
        markdown = markdown.replace("<!-- experiments -->", _parts.experiments(EXPERIMENTS.values(), _found()))
    return markdown


def stages(found: Evidence | None) -> str:
    """The errors at each stage of a conversion, a table for each dataset: mean and half the 95% interval."""
    if found is None:
        return "Not measured yet."
    rows = conversion.table(found)
    text = []
    for data in rows["data"].drop_duplicates():
        names = ["norm", *conversion.STAGES.values()]
        text += [f"{data}, error in %:", "", f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
        for line, own in rows[rows["data"] == data].groupby("line", sort=False):
            cells = [_cell(own[stage]) for stage in conversion.STAGES]
            text.append(f"| {label(str(line))} | {' | '.join(cells)} |")
        text.append("")
    return "\n".join(text)


def _cell(values: "pd.Series[float]") -> str:
    found = estimate(values)
    spread = f" ± {found.high - found.mean:.1f}" if found.n > 1 else ""
    return f"{found.mean:.1f}{spread}" if found.n else "-"


def _found() -> dict[str, Evidence]:
    return {name: found for name in EXPERIMENTS if (found := evidence(name)) is not None}
