"""``groupnorm claims``: what the literature claims, and what was measured."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from groupnorm.cli.outcome import outcome

if TYPE_CHECKING:
    from groupnorm.lab.analysis.statistics import Estimate
    from groupnorm.lab.experiments.framework.claim import Finding

_COLORS = {
    "reproduced": "green",
    "not reproduced": "red",
    "inconclusive": "yellow",
    "no verdict": "dim",
    "not run": "dim",
}


def claims(
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
    runs: Annotated[
        Path | None,
        typer.Option(
            help="A folder of runs of your own; the records that come with the package unless given.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """List every claim with its source, its published number and what was measured, with a verdict."""
    from groupnorm.lab.experiments import ledger

    with outcome():
        findings = ledger.ledger(runs)
    if as_json:
        typer.echo(json.dumps(ledger.as_json(findings), indent=1, ensure_ascii=False))
        return
    console = Console(emoji=False)
    for experiment, found in groupby(findings, key=lambda finding: finding.experiment):
        console.print(findings_table(experiment, list(found)), "")
    counts = Counter(finding.verdict for finding in findings)
    console.print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()), highlight=False)
    console.print(f"Records: {runs or ledger.RECORDS}", highlight=False, markup=False, soft_wrap=True)


def findings_table(experiment: str, findings: Sequence[Finding]) -> Table:
    """A row for each claim of an experiment: the claim, what was published and measured, and the verdict."""
    from groupnorm.lab.experiments.ledger import machines

    evidence = findings[0].evidence if findings else None
    head = [evidence.head["scale"], evidence.head["date"], *machines(evidence)] if evidence else []
    title = f"[bold]{experiment}[/]  [dim]{', '.join(head)}[/]"
    table = Table(title=title, title_justify="left", title_style="", show_lines=True, expand=True)
    for name, ratio in ("claim", 5), ("published", 3), ("measured: mean and 95% interval", 5):
        table.add_column(name, ratio=ratio)
    table.add_column("verdict", width=14)
    for finding in findings:
        claim = finding.claim
        measured = [
            f"{effect.name}: {interval(found, effect.over)}; claimed {effect.expected}"
            for effect, found in zip(claim.effects, finding.estimates, strict=False)
        ]
        note = f" {claim.note}" if claim.note and finding.verdict != "reproduced" else ""
        table.add_row(
            f"{claim.statement}\n[dim]{claim.source}. Refuted if {claim.refuted}.{note}[/]",
            claim.published,
            "\n".join(measured),
            Text(finding.verdict, style=_COLORS.get(finding.verdict, "dim")),
        )
    return table


def interval(found: Estimate, over: str) -> str:
    """The mean and the interval of an estimate, such as ``+1.2 [+0.3, +2.1], 5 seeds``."""
    if not found.n:
        return "no value"
    bounds = f" [{found.low:+.3g}, {found.high:+.3g}]" if found.n > 1 else ""
    return f"{found.mean:+.3g}{bounds}, {found.n} {over}"
