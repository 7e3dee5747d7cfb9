"""The command line: one file per verb, each a thin layer over the package."""

from __future__ import annotations

import sys
from io import TextIOWrapper

import typer

from groupnorm.cli import bench, claims, compare, convert, doctor, ls, report, run

app = typer.Typer(
    name="groupnorm",
    help="Group Normalization for PyTorch: compare norms over batch sizes, and see who survives.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="rich",
)
app.command()(compare.compare)
app.command()(report.report)
app.command()(run.run)
app.command()(convert.convert)
app.command()(claims.claims)
app.command()(bench.bench)
app.command()(ls.ls)
app.command()(doctor.doctor)


def main() -> None:
    """Entry point of the ``groupnorm`` command."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name may hold what no encoding has
    app()
